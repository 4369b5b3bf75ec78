from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from sprec_ray.decoding.catalog.request import CatalogSearch
from sprec_ray.decoding.catalog.trie import Trie, build_trie
from sprec_ray.decoding.engines import transformers as hf_decoder
from sprec_ray.decoding.engines.decoder_model import DecoderModel
from sprec_ray.decoding.engines.transformers import TransformersDecoder
from sprec_ray.decoding.tree import rows as tree_rows
from sprec_ray.decoding.tree.rows import TreeRows
from tests.decoding.tiny_llama import TinyModel
from tests.decoding.toy_tree import ranked

pytestmark = pytest.mark.slow

EOS = 1
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": EOS,
    "pad_token_id": 2,
}
GEMMA: dict[str, Any] = {"query_pre_attn_scalar": 8, "sliding_window": 6}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"]}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama without groups": ("Llama", {"num_key_value_heads": 4}),
    "mistral with a window": ("Mistral", {"sliding_window": 5}),
    "qwen2": ("Qwen2", {}),
    "qwen2 with a window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {}),
    "gemma": ("Gemma", {}),
    "gemma2": ("Gemma2", GEMMA | LAYERS | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 20.0}),
    "gemma3": ("Gemma3Text", GEMMA | LAYERS),
    "phi3": ("Phi3", {"sliding_window": 7}),
    "mamba": ("Mamba", {"state_size": 8, "hidden_size": 32, "num_hidden_layers": 2}),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
}
NAMED_OTHERWISE = ("mamba", "gpt2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def make_decoder(tiny_model: TinyModel, folder: Path, name: str, *, max_model_len: int = 128) -> TransformersDecoder:
    """A tiny random model, with weights large enough to tell paths apart."""
    path = folder / name.replace(" ", "-")
    if not path.exists():
        architecture, options = MODELS[name]
        sizes = {"bos_token_id": 0, "eos_token_id": EOS, "pad_token_id": 2} if name in NAMED_OTHERWISE else SIZES
        config_type = getattr(transformers, f"{architecture}Config")
        config = config_type(vocab_size=len(tiny_model.tokenizer), **(sizes | options))
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 2:
                    weight.mul_(4.0)
        model.save_pretrained(path)
        tiny_model.tokenizer.save_pretrained(path)
    return TransformersDecoder(DecoderModel(path=str(path), max_model_len=max_model_len), use_gpu=False)


def catalog(num_titles: int = 40) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [[*rng.integers(3, 9, rng.integers(1, 9)).tolist(), EOS] for _ in range(num_titles)]


def make_prompts(lengths: Sequence[int], *, common: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(1)
    beginning = rng.integers(3, 200, common).tolist()
    return [beginning + rng.integers(3, 200, length).tolist() for length in lengths]


@torch.inference_mode()
def true_logps(decoder: TransformersDecoder, prompts: Sequence[list[int]], titles: Sequence[list[int]]) -> Any:
    """[prompts, items]: a forward pass of the model's own for each pair."""
    logps = np.empty((len(prompts), len(titles)))
    for row, prompt in enumerate(prompts):
        for column, title in enumerate(titles):
            logits = decoder._model(input_ids=torch.tensor([[*prompt, *title]]), use_cache=False).logits[0]
            wanted = logits[len(prompt) - 1 : -1].log_softmax(-1)
            logps[row, column] = float(wanted.gather(1, torch.tensor(title)[:, None]).sum())
    return logps


def assert_right(decoder: TransformersDecoder, trie: Trie, prompts: Sequence[list[int]], expected: Any) -> None:
    """Ranks and searches equal separate forward passes."""
    assert decoder.catalog.rank(trie, prompts) == pytest.approx(expected, abs=1e-4)
    leaves = trie.leaf_of_items().tolist()
    for kind in ("exact", "beam"):
        width = None if kind == "exact" else len(leaves)
        search = CatalogSearch(kind=kind, num_answers=5, beam_width=width, max_tokens=10**6)  # type: ignore[arg-type]
        for found, logps in zip(decoder.catalog.search(trie, prompts, search), expected, strict=True):
            truth = dict(zip(leaves, logps.tolist(), strict=True))
            assert found.leaves.tolist() == ranked(truth)[:5]
            assert found.logps == pytest.approx([truth[leaf] for leaf in found.leaves.tolist()], abs=1e-4)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "mamba"])
def test_a_shared_prompt_gives_the_log_probabilities_of_separate_rows(
    tiny_model: TinyModel, folder: Path, name: str
) -> None:
    decoder, titles = make_decoder(tiny_model, folder, name), catalog(12)
    prompts = make_prompts([3, 20, 9], common=10)
    expected = true_logps(decoder, prompts, titles)
    assert expected.std() > 1.0
    assert_right(decoder, build_trie(titles, eos_token_id=EOS), prompts, expected)
    assert decoder.catalog.why_not_tree is None


@pytest.mark.parametrize(
    ("lengths", "common"),
    [([1], 0), ([30], 0), ([1, 60, 2, 33], 0), ([1, 60, 2, 33], 9), ([4] * 7, 20), ([0, 5, 0], 12)],
)
@pytest.mark.parametrize("max_rows", [1, 2, 64])
@pytest.mark.parametrize("name", ["llama", "mistral with a window"])
def test_prompts_of_any_length_and_number(
    tiny_model: TinyModel,
    folder: Path,
    name: str,
    max_rows: int,
    lengths: list[int],
    common: int,
) -> None:
    decoder, titles = make_decoder(tiny_model, folder, name), catalog(8)
    decoder.catalog.max_rows = max_rows
    prompts = make_prompts(lengths, common=common)
    assert_right(decoder, build_trie(titles, eos_token_id=EOS), prompts, true_logps(decoder, prompts, titles))
    assert decoder.catalog.why_not_tree is None


@pytest.mark.parametrize("most", [1, 2, 7, 30])
def test_steps_may_be_computed_in_portions(
    tiny_model: TinyModel, folder: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    decoder, titles = make_decoder(tiny_model, folder, "llama"), catalog(10)
    prompts = make_prompts([3, 17, 9, 1])
    longest = []

    def in_portions(forward: Any, **options: Any) -> TreeRows:
        def counted(ids_T: Any, positions_T: Any, keep_A: Any) -> Any:
            longest.append(len(ids_T))
            return forward(ids_T, positions_T, keep_A)

        return TreeRows(counted, max_tokens=most, **options)

    expected = true_logps(decoder, prompts, titles)
    monkeypatch.setattr(hf_decoder, "TreeRows", in_portions)
    assert_right(decoder, build_trie(titles, eos_token_id=EOS), prompts, expected)
    assert decoder.catalog.why_not_tree is None
    assert max(longest) < 150


@pytest.mark.parametrize("fault", ["attention", "window"])
def test_a_model_that_cannot_be_shared_is_searched_path_by_path(
    tiny_model: TinyModel, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """Attention that returns wrong values, or that does not know of the model's window."""
    decoder, titles = make_decoder(tiny_model, folder, "mistral with a window"), catalog(6)
    prompts = make_prompts([3, 17])
    own = TreeRows.attend

    def wrong(*arguments: Any, window: int | None, **options: Any) -> Any:
        return own(*arguments, **options) if fault == "window" else 0.9 * own(*arguments, window=window, **options)

    monkeypatch.setattr(TreeRows, "attend", wrong)
    with caplog.at_level(logging.WARNING):
        trie = build_trie(titles, eos_token_id=EOS)
        assert_right(decoder, trie, prompts, true_logps(decoder, prompts, titles))
    assert decoder.catalog.why_not_tree is not None
    messages = [
        record.getMessage() for record in caplog.records if record.name == "sprec_ray.decoding.engines.guarded_search"
    ]
    assert len(messages) == 1
    assert messages[0].startswith("searching path by path, which is slower: a response has ")


def test_a_common_beginning_is_computed_once(
    tiny_model: TinyModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, prompts = make_decoder(tiny_model, folder, "llama"), make_prompts([2, 3, 4], common=50)
    lengths: list[int] = []
    run = TreeRows._run

    def counted(self: TreeRows, row_T: Any, *rest: Any) -> Any:
        lengths.append(len(row_T))
        return run(self, row_T, *rest)

    decoder.catalog.search(build_trie(catalog(), eos_token_id=EOS), prompts, CatalogSearch(num_answers=1))
    monkeypatch.setattr(TreeRows, "_run", counted)
    decoder.catalog.search(build_trie(catalog(), eos_token_id=EOS), prompts, CatalogSearch(num_answers=1))
    assert lengths[:2] == [50, 9]


def test_memory_grows_with_the_trees(tiny_model: TinyModel, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_rows, "_SLOTS_AT_ONCE", 1)
    monkeypatch.setattr("sprec_ray.decoding.tree.forest._PLACES_AT_ONCE", 1)
    decoder, titles = make_decoder(tiny_model, folder, "llama"), catalog(60)
    prompts = make_prompts([1, 5, 9])
    assert_right(decoder, build_trie(titles, eos_token_id=EOS), prompts, true_logps(decoder, prompts, titles))


@pytest.mark.parametrize("method", ["search", "rank"])
def test_a_prompt_that_leaves_no_room_for_the_longest_title_is_an_error(
    tiny_model: TinyModel, folder: Path, method: str
) -> None:
    decoder = make_decoder(tiny_model, folder, "llama", max_model_len=20)
    trie = build_trie([[5, EOS], [5, 6, 7, EOS]], eos_token_id=EOS)

    def ask(length: int) -> Any:
        prompts = make_prompts([3, length])
        return (
            decoder.catalog.rank(trie, prompts)
            if method == "rank"
            else decoder.catalog.search(trie, prompts, CatalogSearch(num_answers=1))
        )

    ask(16)
    with pytest.raises(ValueError, match="a prompt of 17 tokens and 4 new tokens exceed max_model_len=20") as error:
        ask(17)
    assert "\n" not in str(error.value)


def test_a_model_without_attention_is_searched_path_by_path(tiny_model: TinyModel, folder: Path) -> None:
    decoder, trie = make_decoder(tiny_model, folder, "mamba"), build_trie(catalog(), eos_token_id=EOS)
    for prompt, found in zip(
        tiny_model.prompts[:2],
        decoder.catalog.search(trie, tiny_model.prompts[:2], CatalogSearch(num_answers=3)),
        strict=True,
    ):
        expected = [decoder.score(prompt, trie.tokens_to(leaf)) for leaf in found.leaves.tolist()]
        assert found.logps == pytest.approx(expected, abs=1e-3)
    assert decoder.catalog.why_not_tree is not None
