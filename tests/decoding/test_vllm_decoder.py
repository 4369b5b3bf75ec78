from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_llama import TinyModel, build_tiny_model

from sprec_ray.config import DecodingConfig
from sprec_ray.decoding.decoder import DecoderModel
from sprec_ray.decoding.hf_decoder import TransformersDecoder
from sprec_ray.decoding.vllm_decoder import VllmDecoder

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
