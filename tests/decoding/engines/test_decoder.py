from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sprec_ray.config.run import DecodingConfig, LoraConfig
from sprec_ray.decoding.engines.decoder_model import DecoderModel
from sprec_ray.decoding.engines.make import make_decoder, resolve_engine
from sprec_ray.decoding.engines.protocol import Decoder
from sprec_ray.decoding.engines.transformers import TransformersDecoder
from sprec_ray.decoding.engines.vllm.decoder import VllmDecoder
from sprec_ray.models.adapters import attach_adapter, load_language_model, read_adapter, set_adapter
from sprec_ray.training.packing import TokenGroup
from sprec_ray.training.scoring import ResponseScorer
from sprec_ray.types import AdapterCheckpoint, Hypothesis
from tests.decoding.tiny_llama import MODULES, TinyModel, make_adapter

pytestmark = pytest.mark.slow

NUM_NEW_TOKENS = 10
ENGINES = ("transformers", "vllm-merged", "vllm-lora")
CONFIG = DecodingConfig(kv_cache_gib=0.1)


@pytest.fixture(scope="module")
def decoders(tiny_model: TinyModel) -> Iterator[dict[str, Decoder]]:
    model = decoder_model(tiny_model.path)
    made: dict[str, Decoder] = {
        "transformers": TransformersDecoder(model, use_gpu=False),
        "vllm-merged": VllmDecoder(CONFIG, model, use_gpu=False, merge_adapters=True, seed=0),
        "vllm-lora": VllmDecoder(CONFIG, model, use_gpu=False, merge_adapters=False, seed=0),
    }
    yield made
    for decoder in made.values():
        decoder.close()


@pytest.fixture(params=ENGINES)
def decoder(request: pytest.FixtureRequest, decoders: dict[str, Decoder]) -> Decoder:
    chosen = decoders[request.param]
    chosen.load_adapter(None)
    return chosen


def decoder_model(path: str) -> DecoderModel:
    return DecoderModel(path=path, max_model_len=128, max_beam_width=6, lora_rank=4)


def assert_same(found: Sequence[tuple[Hypothesis, ...]], expected: Sequence[tuple[Hypothesis, ...]]) -> None:
    assert len(found) == len(expected)
    for beams, expected_beams in zip(found, expected, strict=True):
        assert [beam.text for beam in beams] == [beam.text for beam in expected_beams]
        assert [beam.num_tokens for beam in beams] == [beam.num_tokens for beam in expected_beams]
        assert [beam.finished for beam in beams] == [beam.finished for beam in expected_beams]
        assert [beam.logp for beam in beams] == pytest.approx([beam.logp for beam in expected_beams], abs=1e-4)


def next_logps(model: torch.nn.Module, token_ids: Sequence[int]) -> list[float]:
    with torch.inference_mode():
        logps: list[float] = model(torch.tensor([list(token_ids)])).logits[0, -1].log_softmax(-1).tolist()
    return logps


def brute_force_beams(
    model: torch.nn.Module, prompt: Sequence[int], *, width: int, eos: int
) -> list[tuple[tuple[int, ...], float]]:
    """Full forward passes without a cache, and no early end: every step runs to the length limit."""
    running: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    finished: list[tuple[tuple[int, ...], float]] = []
    for _ in range(NUM_NEW_TOKENS):
        grown = []
        for tokens, logp in running:
            for token, token_logp in enumerate(next_logps(model, [*prompt, *tokens])):
                grown.append(((*tokens, token), logp + token_logp))
        grown.sort(key=lambda beam: -beam[1])
        finished += [beam for beam in grown[:width] if beam[0][-1] == eos]
        running = [beam for beam in grown[: 2 * width] if beam[0][-1] != eos][:width]
        last = grown[:width]
    finished += [beam for beam in last if beam[0][-1] != eos]
    return sorted(finished, key=lambda beam: -beam[1])[:width]


def test_the_engine_is_named_with_its_version(decoders: dict[str, Decoder]) -> None:
    assert decoders["transformers"].engine == "transformers 5.19.0"
    assert decoders["vllm-merged"].engine == "vllm 0.32.0"


@pytest.mark.parametrize("width", [2, 3, 6])
def test_beams_equal_a_search_with_full_forward_passes(decoder: Decoder, tiny_model: TinyModel, width: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model.path)
    eos = tiny_model.tokenizer.eos_token_id
    found = decoder.decode(tiny_model.prompts, beam_width=width, max_new_tokens=NUM_NEW_TOKENS)
    for prompt, beams in zip(tiny_model.prompts, found, strict=True):
        expected = brute_force_beams(model, prompt, width=width, eos=eos)
        assert [beam.logp for beam in beams] == pytest.approx([logp for _, logp in expected], abs=1e-4)
        assert [beam.finished for beam in beams] == [tokens[-1] == eos for tokens, _ in expected]
        texts = [tiny_model.tokenizer.decode([token for token in tokens if token != eos]) for tokens, _ in expected]
        assert [beam.text for beam in beams] == texts


def test_the_tiny_model_ends_early_and_late(decoders: dict[str, Decoder], tiny_model: TinyModel) -> None:
    """Without both, equal beams would say nothing about finished ones."""
    found = decoders["transformers"].decode(tiny_model.prompts, beam_width=6, max_new_tokens=NUM_NEW_TOKENS)
    beams = [beam for row in found for beam in row]
    assert 0.1 < sum(beam.finished for beam in beams) / len(beams) < 0.95
    assert len({beam.num_tokens for beam in beams if beam.finished}) > 2


@pytest.mark.parametrize("adapter", [0, 1])
@pytest.mark.parametrize("width", [1, 2, 6])
@pytest.mark.parametrize("engine", ["vllm-merged", "vllm-lora"])
def test_vllm_equals_transformers_under_an_adapter(
    decoders: dict[str, Decoder], tiny_model: TinyModel, engine: str, width: int, adapter: int
) -> None:
    found = []
    for name in (engine, "transformers"):
        decoders[name].load_adapter(tiny_model.adapters[adapter])
        found.append(decoders[name].decode(tiny_model.prompts, beam_width=width, max_new_tokens=NUM_NEW_TOKENS))
    assert_same(found[0], found[1])


def test_one_beam_is_greedy(decoder: Decoder, tiny_model: TinyModel) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model.path)
    found = decoder.decode(tiny_model.prompts, beam_width=1, max_new_tokens=NUM_NEW_TOKENS)
    for prompt, (beam,) in zip(tiny_model.prompts, found, strict=True):
        tokens: list[int] = []
        logp = 0.0
        while len(tokens) < NUM_NEW_TOKENS and tiny_model.tokenizer.eos_token_id not in tokens:
            logps = next_logps(model, [*prompt, *tokens])
            tokens.append(max(range(len(logps)), key=logps.__getitem__))
            logp += logps[tokens[-1]]
        assert beam.num_tokens == len(tokens)
        assert beam.logp == pytest.approx(logp, abs=1e-4)
        assert beam.finished == (tokens[-1] == tiny_model.tokenizer.eos_token_id)


@pytest.mark.parametrize("width", [1, 6])
def test_hypotheses_are_sorted_and_lack_the_eos(decoder: Decoder, tiny_model: TinyModel, width: int) -> None:
    for beams in decoder.decode(tiny_model.prompts, beam_width=width, max_new_tokens=NUM_NEW_TOKENS):
        assert len(beams) == width
        assert [beam.logp for beam in beams] == sorted((beam.logp for beam in beams), reverse=True)
        assert all("</s>" not in beam.text for beam in beams)
        assert all(beam.num_tokens == NUM_NEW_TOKENS for beam in beams if not beam.finished)


@pytest.mark.parametrize("width", [1, 3])
def test_neither_batch_nor_order_matters(decoder: Decoder, tiny_model: TinyModel, width: int) -> None:
    prompts = tiny_model.prompts
    together = decoder.decode(prompts, beam_width=width, max_new_tokens=NUM_NEW_TOKENS)
    alone = [decoder.decode([prompt], beam_width=width, max_new_tokens=NUM_NEW_TOKENS)[0] for prompt in prompts]
    assert_same(alone, together)
    reverse = decoder.decode(prompts[::-1], beam_width=width, max_new_tokens=NUM_NEW_TOKENS)
    assert_same(reverse[::-1], together)
    assert decoder.decode([], beam_width=width, max_new_tokens=NUM_NEW_TOKENS) == []


@pytest.mark.parametrize("num_tokens", [1, 7])
def test_score_equals_a_forward_pass_of_the_adapter(decoder: Decoder, tiny_model: TinyModel, num_tokens: int) -> None:
    prompt, response = tiny_model.prompts[1], [17, 40, 5, 99, 200, 31, 1][-num_tokens:]
    plain = AutoModelForCausalLM.from_pretrained(tiny_model.path)
    for adapter in (None, tiny_model.adapters[0]):
        model = plain if adapter is None else PeftModel.from_pretrained(plain, adapter.path)
        prefixes = [[*prompt, *response[:index]] for index in range(len(response))]
        expected = sum(next_logps(model, prefix)[token] for prefix, token in zip(prefixes, response, strict=True))
        decoder.load_adapter(adapter)
        assert decoder.score(prompt, response) == pytest.approx(expected, abs=1e-4)
        assert decoder.score(prompt, response) == pytest.approx(expected, abs=1e-4)  # the cache is warm now


def test_score_fits_a_full_context(decoder: Decoder, tiny_model: TinyModel) -> None:
    prompt = [3 + index % 200 for index in range(120)]
    assert math.isfinite(decoder.score(prompt, [17, 40, 5, 99, 200, 31, 6, 1]))


def test_swapping_back_restores_the_scores_exactly(decoder: Decoder, tiny_model: TinyModel) -> None:
    first, second = tiny_model.adapters
    prompt, response = tiny_model.prompts[2], (17, 40, 5, 1)
    seen: dict[AdapterCheckpoint | None, set[float]] = {}
    for adapter in (None, first, second, first, None, second, None, first):
        decoder.load_adapter(adapter)
        decoder.decode([prompt], beam_width=2, max_new_tokens=4)  # fills the prefix cache for the next adapter
        seen.setdefault(adapter, set()).add(decoder.score(prompt, response))
    assert all(len(scores) == 1 for scores in seen.values())
    assert len(set.union(*seen.values())) == 3


def test_decoding_after_a_swap_does_not_reuse_the_prefix_of_another_adapter(
    decoder: Decoder, tiny_model: TinyModel
) -> None:
    found = []
    for adapter in (tiny_model.adapters[0], tiny_model.adapters[1], tiny_model.adapters[0]):
        decoder.load_adapter(adapter)
        found.append(decoder.decode(tiny_model.prompts, beam_width=3, max_new_tokens=NUM_NEW_TOKENS))
    assert found[0] != found[1]
    assert found[0] == found[2]


def test_many_swaps_leave_nothing_behind(tiny_model: TinyModel) -> None:
    decoder = TransformersDecoder(decoder_model(tiny_model.path), use_gpu=False)
    before = {name: weight.clone() for name, weight in decoder._model.state_dict().items()}
    for version in range(6):
        decoder.load_adapter(tiny_model.adapters[version % 2])
    decoder.load_adapter(None)
    after = decoder._model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_models_own_generation_config_does_not_leak(decoder: Decoder, tiny_model: TinyModel) -> None:
    """The tiny model asks for sampling at temperature 3 with a repetition penalty; two runs would differ."""
    generation_config = json.loads((Path(tiny_model.path) / "generation_config.json").read_text())
    assert generation_config["do_sample"] is True
    runs = [decoder.decode(tiny_model.prompts, beam_width=2, max_new_tokens=NUM_NEW_TOKENS) for _ in range(2)]
    assert runs[0] == runs[1]


def test_a_sleeping_decoder_wakes_for_any_call_with_its_adapter(decoder: Decoder, tiny_model: TinyModel) -> None:
    first, second = tiny_model.adapters
    prompt, response = tiny_model.prompts[2], (17, 40, 5, 1)
    awake = {}
    for adapter in (second, first):
        decoder.load_adapter(adapter)
        awake[adapter] = decoder.score(prompt, response)
    decoder.sleep()
    decoder.sleep()
    assert decoder.score(prompt, response) == awake[first]
    decoder.sleep()
    decoder.load_adapter(second)
    assert decoder.score(prompt, response) == awake[second]
    decoder.sleep()
    decoder.wake()
    decoder.wake()
    decoder.load_adapter(first)
    found = decoder.decode([prompt], beam_width=2, max_new_tokens=4)
    decoder.sleep()
    assert decoder.decode([prompt], beam_width=2, max_new_tokens=4) == found
    assert decoder.score(prompt, response) == awake[first]


def test_the_transformers_decoder_sleeps_in_the_cpus_memory(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU: the model's moves are written down, and its device is the CPU."""
    decoder = TransformersDecoder(decoder_model(tiny_model.path), use_gpu=False)
    moves: list[str] = []
    monkeypatch.setattr(decoder._model, "to", lambda device: moves.append(str(device)))
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: moves.append("empty"))
    decoder.sleep()
    assert moves == []
    decoder._device = torch.device("cuda")
    decoder.sleep()
    decoder.sleep()
    assert moves == ["cpu", "empty"]
    decoder.load_adapter(None)
    decoder.wake()
    assert moves == ["cpu", "empty", "cuda"]
    decoder.sleep()
    with pytest.raises(ValueError, match="max_model_len"):
        decoder.decode([[5] * 200], beam_width=1, max_new_tokens=1)
    assert moves == ["cpu", "empty", "cuda"] * 2


def broken_adapter(tiny_model: TinyModel, folder: Path, *, fault: str) -> AdapterCheckpoint:
    path = folder / "adapter"
    shutil.copytree(tiny_model.adapters[0].path, path)
    tensors = load_file(path / "adapter_model.safetensors")
    name = next(key for key in tensors if "q_proj.lora_A" in key)
    if fault == "unknown module":
        tensors[name.replace("q_proj", "query")] = tensors.pop(name)
    elif fault == "missing half":
        del tensors[name]
    elif fault == "shape":
        tensors[name] = tensors[name][:, :-1].contiguous()
    elif fault == "nan":
        tensors[name][0, 0] = math.nan
    elif fault == "not lora":
        tensors["base_model.model.lm_head.weight"] = torch.zeros(2, 2)
    save_file(tensors, path / "adapter_model.safetensors")
    return AdapterCheckpoint(path=str(path), version=7)


@pytest.mark.parametrize("fault", ["unknown module", "missing half", "shape", "nan", "not lora"])
def test_an_adapter_that_cannot_be_applied_whole_is_an_error(
    decoder: Decoder, tiny_model: TinyModel, tmp_path: Path, fault: str
) -> None:
    prompt, response = tiny_model.prompts[0], (17, 40, 1)
    base = decoder.score(prompt, response)
    decoder.load_adapter(tiny_model.adapters[0])
    with pytest.raises(ValueError, match="adapter"):
        decoder.load_adapter(broken_adapter(tiny_model, tmp_path, fault=fault))
    assert decoder.score(prompt, response) == base


def test_an_adapter_that_the_model_files_do_not_know_is_an_error(
    decoders: dict[str, Decoder], tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = decoders["vllm-merged"]
    decoder.load_adapter(None)
    monkeypatch.setattr("sprec_ray.decoding.engines.vllm.decoder.reload_weights", lambda worker, lora: set())
    with pytest.raises(ValueError, match=r"hold no weight .* \(14 in all\)"):
        decoder.load_adapter(tiny_model.adapters[0])


def test_a_missing_adapter_is_an_error(decoder: Decoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        decoder.load_adapter(AdapterCheckpoint(path=str(tmp_path / "none"), version=3))


def test_an_adapter_on_some_modules_is_applied(
    decoders: dict[str, Decoder], tiny_model: TinyModel, tmp_path: Path
) -> None:
    """vLLM fuses q, k and v into one weight, gate and up into another: adapt only one part of each."""
    adapter = make_adapter(Path(tiny_model.path), tmp_path, version=9, modules=["v_proj", "up_proj"])
    scores = []
    for decoder in decoders.values():
        decoder.load_adapter(adapter)
        scores.append(decoder.score(tiny_model.prompts[0], (17, 40, 1)))
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-4)


def test_work_beyond_the_limits_is_refused(decoder: Decoder, tiny_model: TinyModel) -> None:
    with pytest.raises(ValueError, match="max_model_len"):
        decoder.decode([list(range(3, 103)) + [5] * 20], beam_width=1, max_new_tokens=NUM_NEW_TOKENS)
    with pytest.raises(ValueError, match="max_beam_width"):
        decoder.decode(tiny_model.prompts, beam_width=7, max_new_tokens=NUM_NEW_TOKENS)
    with pytest.raises(ValueError, match="no tokens"):
        decoder.decode([[]], beam_width=1, max_new_tokens=NUM_NEW_TOKENS)


def test_the_engine_is_chosen_by_configuration(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_engine(DecodingConfig()) == "vllm"
    config = DecodingConfig(engine="transformers")
    decoder = make_decoder(config, decoder_model(tiny_model.path), use_gpu=False, seed=0)
    assert isinstance(decoder, TransformersDecoder)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert resolve_engine(DecodingConfig()) == "transformers"
    with pytest.raises(ValueError, match=r"decoding\.engine=transformers"):
        make_decoder(DecodingConfig(engine="vllm"), decoder_model(tiny_model.path), use_gpu=False, seed=0)


def test_transformers_decodes_with_the_4_bit_weights_that_are_trained(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: False)  # on a CPU, inference would round to bfloat16
    use_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if use_gpu else "cpu")
    decoder = TransformersDecoder(
        dataclasses.replace(decoder_model(tiny_model.path), quantization="nf4"), use_gpu=use_gpu
    )
    plain = TransformersDecoder(decoder_model(tiny_model.path), use_gpu=use_gpu)
    prompt, response = tiny_model.prompts[0], (5, 9, 30, 2)
    base = decoder.score(prompt, response)
    for adapter in tiny_model.adapters:
        model = load_language_model(tiny_model.path, dtype="float32", quantization="nf4", device=device)
        lora = LoraConfig(rank=4, alpha=8, target_modules=tuple(MODULES))
        model = attach_adapter(model, lora, dropout=0.0, seed=0).eval()
        set_adapter(model, read_adapter(adapter.path))
        with torch.no_grad():
            scorer = ResponseScorer(model)
            expected = float(scorer(scorer.batch([TokenGroup(tuple(prompt), (response,))], device))[0, 0])
        for each in (decoder, plain):
            each.load_adapter(adapter)
        assert decoder.score(prompt, response) == pytest.approx(expected, abs=1e-3)
        assert abs(plain.score(prompt, response) - expected) > 0.5  # so the canary sees the difference
    decoder.load_adapter(None)
    assert decoder.score(prompt, response) == base
