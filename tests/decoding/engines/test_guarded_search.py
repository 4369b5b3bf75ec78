"""Catalogue search through the engines."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sprec_ray.config.run import DecodingConfig
from sprec_ray.decoding.catalog.request import CatalogSearch
from sprec_ray.decoding.catalog.search import Found
from sprec_ray.decoding.catalog.trie import Trie, build_trie
from sprec_ray.decoding.engines.decoder_model import DecoderModel
from sprec_ray.decoding.engines.transformers import TransformersDecoder
from sprec_ray.decoding.engines.vllm import tree as vllm_tree
from sprec_ray.decoding.engines.vllm.decoder import VllmDecoder
from sprec_ray.types import AdapterCheckpoint
from tests.decoding.tiny_llama import TinyModel

pytestmark = pytest.mark.slow

ENGINES = ("transformers", "vllm-merged", "vllm-lora")
TITLES = (
    *("Dune", "dune", "Emma", "Émile", "Ulysses", "The Hobbit", "The Hobbits", "The  Hobbit", " The Hobbit", "1984"),
    *('A Child Called "It"', '"It"', "Les Misérables", "三体", "🦊 and 🐻", "<b>Emma</b>", "<em>", "A", "A A", "Dune"),
)
LONG = "x" * 683
SEARCHES = {
    "exact": CatalogSearch(num_answers=5),
    "beam": CatalogSearch(kind="beam", num_answers=4, beam_width=6),
    "sample": CatalogSearch(kind="sample", num_answers=5, temperature=3.0),
    "renormalized": CatalogSearch(num_answers=5, renormalize=True),
}


@pytest.fixture(scope="module")
def decoders(tiny_model: TinyModel) -> Iterator[dict[str, Any]]:
    model = decoder_model(tiny_model)
    config = DecodingConfig(kv_cache_gib=0.1)
    made = {
        "transformers": TransformersDecoder(model, use_gpu=False),
        "vllm-merged": VllmDecoder(config, model, use_gpu=False, merge_adapters=True, seed=0),
        "vllm-lora": VllmDecoder(config, model, use_gpu=False, merge_adapters=False, seed=0),
    }
    yield made
    for decoder in made.values():
        decoder.close()


@pytest.fixture(params=ENGINES)
def decoder(request: pytest.FixtureRequest, decoders: dict[str, Any]) -> Any:
    chosen = decoders[request.param]
    chosen.load_adapter(None)
    return chosen


def decoder_model(tiny_model: TinyModel) -> DecoderModel:
    return DecoderModel(path=tiny_model.path, max_model_len=128, max_beam_width=6, lora_rank=4)


def tokens_of(tiny_model: TinyModel, title: str) -> tuple[int, ...]:
    ids = tiny_model.tokenizer(title, add_special_tokens=False)["input_ids"]
    return (*ids, tiny_model.tokenizer.eos_token_id)


def make_trie(tiny_model: TinyModel, titles: Sequence[str] = TITLES) -> Trie:
    responses = [tokens_of(tiny_model, title) for title in titles]
    return build_trie(responses, eos_token_id=tiny_model.tokenizer.eos_token_id)


def assert_same(found: Sequence[Found], expected: Sequence[Found]) -> None:
    assert [one.leaves.tolist() for one in found] == [one.leaves.tolist() for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-4)
        assert one.logps == pytest.approx(other.logps, abs=1e-4)
        assert one.gap == pytest.approx(other.gap, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize("adapter", [None, 0, 1])
@pytest.mark.parametrize("kind", SEARCHES)
@pytest.mark.parametrize("engine", ["vllm-merged", "vllm-lora"])
def test_vllm_finds_what_transformers_finds(
    decoders: dict[str, Any], tiny_model: TinyModel, engine: str, kind: str, adapter: int | None
) -> None:
    trie, found = make_trie(tiny_model), []
    for name in (engine, "transformers"):
        decoders[name].load_adapter(None if adapter is None else tiny_model.adapters[adapter])
        found.append(decoders[name].catalog.search(trie, tiny_model.prompts, SEARCHES[kind], seeds=[5, 4, 3, 2, 1]))
    assert_same(found[0], found[1])
    assert all(decoders[name].catalog.why_not_tree is None for name in (engine, "transformers"))


@pytest.mark.parametrize("adapter", [None, 0, 1])
def test_ranks_scores_and_exact_searches_agree(decoder: Any, tiny_model: TinyModel, adapter: int | None) -> None:
    decoder.load_adapter(None if adapter is None else tiny_model.adapters[adapter])
    trie = make_trie(tiny_model)
    logps = decoder.catalog.rank(trie, tiny_model.prompts)
    for prompt, row in zip(tiny_model.prompts[:2], logps, strict=False):
        responses = [tokens_of(tiny_model, title) for title in TITLES]
        assert row == pytest.approx([decoder.score(prompt, response) for response in responses], abs=1e-4)
        assert row == pytest.approx([decoder.score(prompt, response, tree=True) for response in responses], abs=1e-4)
    for row, found in zip(logps, decoder.catalog.search(trie, tiny_model.prompts, SEARCHES["exact"]), strict=True):
        best = np.unique(row)[::-1][:5]
        assert found.scores == pytest.approx(best, abs=1e-4)
        for leaf, score in zip(found.leaves.tolist(), found.scores, strict=True):
            assert row[list(trie.items_below(leaf))] == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("width", [2, 4, 6])
def test_beams_are_those_of_generate_over_allowed_tokens(decoder: Any, tiny_model: TinyModel, width: int) -> None:
    trie, eos = make_trie(tiny_model), tiny_model.tokenizer.eos_token_id
    node_of = {trie.tokens_to(node): node for node in range(trie.num_nodes)}
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model.path)
    model.generation_config = type(model.generation_config)()
    found = decoder.catalog.search(trie, tiny_model.prompts, CatalogSearch(kind="beam", num_answers=width))
    for prompt, one in zip(tiny_model.prompts, found, strict=True):
        num = len(prompt)

        def allowed(_: int, ids: torch.Tensor, num: int = num) -> list[int]:
            node = node_of.get(tuple(ids[num:].tolist()))
            children = [] if node is None else trie.token_n[slice(*trie.first_child_n[node : node + 2])].tolist()
            return children or [eos]

        beams = model.generate(
            torch.tensor([prompt]),
            prefix_allowed_tokens_fn=allowed,
            num_beams=width,
            num_return_sequences=width,
            length_penalty=0.0,
            early_stopping="never",
            do_sample=False,
            max_new_tokens=trie.depth + 1,
            eos_token_id=eos,
            pad_token_id=tiny_model.tokenizer.pad_token_id,
            return_dict_in_generate=True,
            output_scores=True,
            renormalize_logits=False,
        )
        rows = [row[num:].tolist() for row in beams.sequences]
        assert [trie.tokens_to(leaf) for leaf in one.leaves] == [tuple(row[: row.index(eos) + 1]) for row in rows]
        assert one.scores == pytest.approx(beams.sequences_scores.tolist(), abs=1e-4)


def test_searching_and_decoding_leave_each_other_alone(decoder: Any, tiny_model: TinyModel) -> None:
    trie, prompts = make_trie(tiny_model), tiny_model.prompts
    decoded = decoder.decode(prompts, beam_width=3, max_new_tokens=10)
    searched = decoder.catalog.search(trie, prompts, SEARCHES["exact"])
    again = decoder.decode(prompts, beam_width=3, max_new_tokens=10)
    assert [[beam.text for beam in beams] for beams in again] == [[beam.text for beam in beams] for beams in decoded]
    for beams, others in zip(again, decoded, strict=True):
        assert [beam.logp for beam in beams] == pytest.approx([beam.logp for beam in others], abs=1e-4)
    assert_same(decoder.catalog.search(trie, prompts, SEARCHES["exact"]), searched)


def test_an_adapter_swapped_between_searches_takes_effect(decoder: Any, tiny_model: TinyModel) -> None:
    trie, seen = make_trie(tiny_model), []
    for adapter in (None, *tiny_model.adapters, None):
        decoder.load_adapter(adapter)
        seen.append(decoder.catalog.search(trie, tiny_model.prompts, SEARCHES["exact"]))
    assert_same(seen[3], seen[0])
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert not np.allclose(seen[one][0].scores, seen[other][0].scores, atol=1e-2)


def test_weights_that_diverged_leave_nothing_behind(decoder: Any, tiny_model: TinyModel, tmp_path: Path) -> None:
    trie, rng = make_trie(tiny_model), np.random.default_rng(0)
    long = [tuple(rng.integers(3, 250, 90).tolist()) for _ in range(8)]
    mixed = [*long[:2], *tiny_model.prompts]
    expected = decoder.catalog.search(trie, mixed, SEARCHES["exact"])
    folder = tmp_path / "diverged"
    shutil.copytree(tiny_model.adapters[0].path, folder)
    factors = load_file(folder / "adapter_model.safetensors")
    grown = {name: torch.full_like(factor, 3e38) if "lora_B" in name else factor for name, factor in factors.items()}
    save_file(grown, folder / "adapter_model.safetensors")
    decoder.load_adapter(AdapterCheckpoint(path=str(folder), version=9))
    actions: list[Callable[[], Any]] = [
        lambda: decoder.catalog.search(trie, long, SEARCHES["exact"]),
        lambda: decoder.catalog.rank(trie, long),
        lambda: decoder.score(long[0], (5, 1), tree=True),
    ]
    for act in actions:
        with pytest.raises(ValueError, match="the weights have diverged"):
            act()
    decoder.load_adapter(None)
    assert_same(decoder.catalog.search(trie, mixed, SEARCHES["exact"]), expected)


def test_no_prompts_have_no_ranking(decoder: Any, tiny_model: TinyModel) -> None:
    assert decoder.catalog.rank(make_trie(tiny_model), []).shape == (0, len(TITLES))


@pytest.mark.parametrize("kind", SEARCHES)
@pytest.mark.parametrize("engine", ["vllm-merged", "vllm-lora"])
def test_searching_by_requests_finds_the_same(
    decoders: dict[str, Any], tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, engine: str, kind: str
) -> None:
    decoder, trie = decoders[engine], make_trie(tiny_model)
    for adapter in (None, tiny_model.adapters[0]):
        decoder.load_adapter(adapter)
        expected = decoder.catalog.search(trie, tiny_model.prompts, SEARCHES[kind])
        with monkeypatch.context() as patched:
            patched.setattr(decoder.catalog, "why_not_tree", "a test")
            patched.setattr(decoder, "_shared_tree", None)
            assert_same(decoder.catalog.search(trie, tiny_model.prompts, SEARCHES[kind]), expected)


def test_another_vllm_is_searched_by_requests_with_one_warning(
    decoders: dict[str, Any],
    tiny_model: TinyModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    decoder, trie = decoders["vllm-merged"], make_trie(tiny_model)
    decoder.load_adapter(None)
    expected = decoder.catalog.search(trie, tiny_model.prompts, SEARCHES["exact"])
    monkeypatch.setattr(vllm_tree, "VERSION", "0.1")
    monkeypatch.setattr(decoder.catalog, "why_not_tree", vllm_tree.why_not_tree(decoder._llm))
    monkeypatch.setattr(decoder.catalog, "is_checked", False)
    with caplog.at_level(logging.WARNING, logger="sprec_ray.decoding.engines.guarded_search"):
        for _ in range(2):
            assert_same(decoder.catalog.search(trie, tiny_model.prompts, SEARCHES["exact"]), expected)
    warnings = [one.getMessage() for one in caplog.records if one.name == "sprec_ray.decoding.engines.guarded_search"]
    assert warnings == [
        "searching path by path, which is slower: vLLM is 0.32.0, and its inside is known of 0.1",
    ]


def test_every_title_is_found_under_its_own_tokens(decoder: Any, tiny_model: TinyModel) -> None:
    trie, leaves = make_trie(tiny_model), {}
    (found,) = decoder.catalog.search(trie, tiny_model.prompts[:1], CatalogSearch(num_answers=50))
    for leaf, logp in zip(found.leaves.tolist(), found.logps, strict=True):
        for item in trie.items_below(leaf):
            leaves[item] = leaf
            tokens = tokens_of(tiny_model, TITLES[item])
            assert trie.tokens_to(leaf) == tokens
            assert tiny_model.tokenizer.decode(tokens[:-1], clean_up_tokenization_spaces=False) == TITLES[item]
            assert logp == pytest.approx(decoder.score(tiny_model.prompts[0], tokens), abs=1e-4)
    assert sorted(leaves) == list(range(len(TITLES)))
    assert len(set(leaves.values())) == len(set(TITLES))


def test_a_very_long_title_is_found_or_refused_by_its_length(tiny_model: TinyModel, decoder: Any) -> None:
    """683 letters are as many tokens of the tiny tokenizer: a context of 128 has no room for them."""
    trie = make_trie(tiny_model, ("Dune", LONG))
    assert trie.depth > 128
    with pytest.raises(ValueError, match="exceed max_model_len=128"):
        decoder.catalog.search(trie, tiny_model.prompts[:1], CatalogSearch(num_answers=2))
    roomy = TransformersDecoder(DecoderModel(path=tiny_model.path, max_model_len=1024), use_gpu=False)
    (found,) = roomy.catalog.search(trie, tiny_model.prompts[:1], CatalogSearch(num_answers=2))
    assert sorted(trie.items_below(leaf)[0] for leaf in found.leaves.tolist()) == [0, 1]
    (one,) = [
        logp for leaf, logp in zip(found.leaves.tolist(), found.logps, strict=True) if trie.items_below(leaf) == (1,)
    ]
    assert one == pytest.approx(roomy.score(tiny_model.prompts[0], tokens_of(tiny_model, LONG)), abs=1e-2)
