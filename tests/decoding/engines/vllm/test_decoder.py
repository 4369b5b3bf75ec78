from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sprec_ray.config.run import DecodingConfig
from sprec_ray.decoding.engines.decoder_model import DecoderModel
from sprec_ray.decoding.engines.transformers import TransformersDecoder
from sprec_ray.decoding.engines.vllm import decoder as vllm_decoder
from sprec_ray.decoding.engines.vllm import start as vllm_engine
from sprec_ray.decoding.engines.vllm.decoder import VllmDecoder
from sprec_ray.models.adapters import load_language_model
from tests.decoding.tiny_llama import TinyModel, build_tiny_model

pytestmark = pytest.mark.slow

CONFIG = DecodingConfig(kv_cache_gib=0.1)


def decoder_model(path: str) -> DecoderModel:
    return DecoderModel(path=path, max_model_len=128, max_beam_width=6, lora_rank=4)


def test_merging_keeps_tied_embeddings(tmp_path: Path) -> None:
    tiny = build_tiny_model(tmp_path, tied=True)
    model = decoder_model(tiny.path)
    reference = TransformersDecoder(model, use_gpu=False)
    decoder = VllmDecoder(CONFIG, model, use_gpu=False, merge_adapters=True, seed=0)
    for adapter in (tiny.adapters[0], None):
        reference.load_adapter(adapter)
        decoder.load_adapter(adapter)
        expected = reference.decode(tiny.prompts, beam_width=3, max_new_tokens=10)
        found = decoder.decode(tiny.prompts, beam_width=3, max_new_tokens=10)
        assert [[beam.text for beam in beams] for beams in found] == [
            [beam.text for beam in beams] for beams in expected
        ]
        for beams, expected_beams in zip(found, expected, strict=True):
            assert [beam.logp for beam in beams] == pytest.approx([beam.logp for beam in expected_beams], abs=1e-4)
    decoder.close()


def test_vllm_refuses_a_larger_rank_than_it_was_started_for(tiny_model: TinyModel) -> None:
    model = DecoderModel(path=tiny_model.path, max_model_len=128, lora_rank=1)
    decoder = VllmDecoder(CONFIG, model, use_gpu=False, merge_adapters=False, seed=0)
    with pytest.raises(ValueError, match="rank 4"):
        decoder.load_adapter(tiny_model.adapters[0])
    decoder.close()


def test_vllm_names_a_head_size_it_cannot_take(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model.path, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"head_dim": 48}))
    with pytest.raises(ValueError, match="size 48"):
        VllmDecoder(CONFIG, decoder_model(str(folder)), use_gpu=False, merge_adapters=True, seed=0)


def nf4_model(path: str, **changes: Any) -> DecoderModel:
    return dataclasses.replace(decoder_model(path), **{"dtype": "bfloat16", "quantization": "nf4", **changes})


def in_bfloat16(path: str, folder: Path) -> str:
    """A copy of the model whose files hold bfloat16."""
    shutil.copytree(path, folder)
    AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def vllm_options(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What vLLM is started with, instead of vLLM."""
    import vllm

    told: list[dict[str, Any]] = []
    monkeypatch.setattr(vllm, "LLM", lambda path, **options: told.append(options))
    monkeypatch.setattr(vllm_engine, "require", lambda module: None)
    return told


def test_what_vllm_is_told_of_4_bit_weights(
    tiny_model: TinyModel, tmp_path: Path, vllm_options: list[dict[str, Any]]
) -> None:
    path = in_bfloat16(tiny_model.path, tmp_path / "model")
    for model in (nf4_model(path), nf4_model(path, quantization="none")):
        VllmDecoder(CONFIG, model, use_gpu=True, merge_adapters=False, seed=0)
    quantised, plain = vllm_options
    assert quantised == {**plain, "quantization": "bitsandbytes", "load_format": "bitsandbytes"}
    assert (quantised["dtype"], quantised["enable_lora"], quantised["max_lora_rank"]) == ("bfloat16", True, 8)


def test_what_vllm_is_told_of_several_gpus(tiny_model: TinyModel, vllm_options: list[dict[str, Any]]) -> None:
    for size in (1, 2):
        model = dataclasses.replace(decoder_model(tiny_model.path), tensor_parallel_size=size)
        VllmDecoder(CONFIG, model, use_gpu=True, merge_adapters=False, seed=0)
    one, two = vllm_options
    assert two == {**one, "tensor_parallel_size": 2, "distributed_executor_backend": "mp"}


@pytest.mark.parametrize("placement", ["split", "colocate", "sequential"])
@pytest.mark.parametrize("platform_can_sleep", [True, False])
@pytest.mark.parametrize("use_gpu", [True, False])
def test_vllm_is_made_to_sleep_only_where_gpus_are_shared_and_it_can(
    tiny_model: TinyModel,
    monkeypatch: pytest.MonkeyPatch,
    vllm_options: list[dict[str, Any]],
    placement: str,
    platform_can_sleep: bool,
    use_gpu: bool,
) -> None:
    config = DecodingConfig(placement=placement, kv_cache_gib=0.1)  # type: ignore[arg-type]
    platform = SimpleNamespace(is_sleep_mode_available=lambda: platform_can_sleep)
    monkeypatch.setattr("vllm.platforms.current_platform", platform)
    monkeypatch.setattr(vllm_decoder, "check_head_size", lambda config: None)
    VllmDecoder(config, decoder_model(tiny_model.path), use_gpu=use_gpu, merge_adapters=not use_gpu, seed=0)
    (options,) = vllm_options
    assert options["enable_sleep_mode"] == (placement == "colocate" and platform_can_sleep and use_gpu)


def test_vllm_wakes_with_an_empty_cache_before_it_takes_an_adapter(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a recorder for an engine, as if on a GPU."""
    told: list[str] = []

    def tell(what: str) -> Callable[..., bool]:
        return lambda *_, **options: (told.append(what + str(options.get("level", ""))), True)[1]

    engine = SimpleNamespace(add_lora=tell("add"), remove_lora=tell("remove"))
    names = {"sleep": "sleep", "wake_up": "wake", "reset_prefix_cache": "forget"}
    drop = {"collective_rpc": lambda function: told.append(function.__name__)}
    llm = SimpleNamespace(llm_engine=engine, **{name: tell(what) for name, what in names.items()}, **drop)
    monkeypatch.setattr("vllm.LLM", lambda path, **options: llm)
    platform = SimpleNamespace(is_sleep_mode_available=lambda: True)
    monkeypatch.setattr("vllm.platforms.current_platform", platform)
    decoder = VllmDecoder(
        DecodingConfig(placement="colocate"),
        decoder_model(tiny_model.path),
        use_gpu=True,
        merge_adapters=False,
        seed=0,
    )
    decoder.load_adapter(tiny_model.adapters[0])
    told.clear()
    decoder.sleep()
    decoder.sleep()
    decoder.load_adapter(tiny_model.adapters[0])
    decoder.wake()
    assert told == ["forget_memory", "sleep1", "wake", "forget"]
    decoder.sleep()
    decoder.load_adapter(tiny_model.adapters[1])
    assert told[4:8] == ["forget_memory", "sleep1", "wake", "forget"]
    assert "add" in told[8:]


@pytest.mark.usefixtures("vllm_options")
def test_vllm_refuses_4_bit_weights_that_would_differ_from_the_trainers(tiny_model: TinyModel, tmp_path: Path) -> None:
    """The tiny model's files hold float32: transformers would quantise bfloat16, vLLM float32."""
    with pytest.raises(ValueError, match=r"^the model's config\.json says float32; .*decoding\.engine=transformers"):
        VllmDecoder(CONFIG, nf4_model(tiny_model.path), use_gpu=True, merge_adapters=False, seed=0)
    path = in_bfloat16(tiny_model.path, tmp_path / "model")
    with pytest.raises(ValueError, match=r"^model\.dtype says float32; .*needs bfloat16"):
        VllmDecoder(CONFIG, nf4_model(path, dtype="float32"), use_gpu=True, merge_adapters=False, seed=0)


def test_vllm_holds_the_4_bit_weights_that_are_trained(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Byte for byte, with vLLM's fused layers taken apart; and it applies an adapter to them."""
    pytest.importorskip("vllm_bnb_plugin")
    pytest.importorskip("bitsandbytes")
    path = in_bfloat16(tiny_model.path, tmp_path / "model")
    trained = load_language_model(path, dtype="bfloat16", quantization="nf4", device=torch.device("cpu"))
    packed = {name: weight for name, weight in trained.named_parameters() if weight.dtype == torch.uint8}
    decoder = VllmDecoder(CONFIG, nf4_model(path), use_gpu=False, merge_adapters=False, seed=0)
    (hosted,) = decoder._llm.collective_rpc(packed_weights)
    assert len(packed) == 2 * 7
    assert len(hosted) == 2 * 4
    for name, weight in hosted.items():
        fused = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
        layer = name.split(".")[-3]
        parts = [packed[name.replace(".base_layer", "").replace(layer, part)] for part in fused.get(layer, (layer,))]
        assert torch.equal(weight, torch.cat([part.data for part in parts]))
    scores = []
    for adapter in (None, *tiny_model.adapters):
        decoder.load_adapter(adapter)
        scores.append(decoder.score(tiny_model.prompts[0], (5, 9, 30, 2)))
    assert len(set(scores)) == 3
    decoder.close()


def packed_weights(worker: Any) -> dict[str, torch.Tensor]:
    return {name: w.cpu() for name, w in worker.get_model().named_parameters() if w.dtype == torch.uint8}
