from __future__ import annotations

import logging
import os
import runpy
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from sprec_ray.cluster.decoding import DecoderPool, DecodingError
from sprec_ray.config import DecodingConfig
from sprec_ray.decoding.decoder import DecoderModel
from sprec_ray.decoding.hf_decoder import TransformersDecoder
from sprec_ray.types import AdapterCheckpoint, Rollout

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

WIDTH, NUM_NEW_TOKENS = 3, 8
LIMITS = {"beam_width": WIDTH, "max_new_tokens": NUM_NEW_TOKENS}
Row = tuple[str, tuple[int, ...]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny model of tests/decoding, which is not on this folder's path."""
    torch.set_num_threads(1)  # beside busy actors, more threads wait for each other a hundred times longer
    helpers = runpy.run_path(str(Path(__file__).parents[1] / "decoding" / "tiny_llama.py"))
    return helpers["build_tiny_model"](tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def rows(tiny: Any) -> list[Row]:
    return [(f"row-{index}", tiny.prompts[index % len(tiny.prompts)][: 8 + index]) for index in range(11)]


@pytest.fixture(scope="module")
def reference(tiny: Any) -> TransformersDecoder:
    return TransformersDecoder(decoder_model(tiny), use_gpu=False)


@pytest.fixture(scope="module")
def pool(tiny: Any) -> Iterator[DecoderPool]:
    with DecoderPool(pool_config(num_decoders=2), decoder_model(tiny), seed=0) as started:
        yield started


def decoder_model(tiny: Any) -> DecoderModel:
    return DecoderModel(path=tiny.path, max_model_len=128, max_beam_width=WIDTH, lora_rank=4)


def pool_config(**changes: Any) -> DecodingConfig:
    values = {"engine": "transformers", "cpus_per_decoder": 0.5, "chunk_size": 3, "kv_cache_gib": 0.1}
    return DecodingConfig(**(values | changes))


def expected_rollouts(
    reference: TransformersDecoder, adapter: AdapterCheckpoint | None, rows: list[Row]
) -> list[Rollout]:
    reference.load_adapter(adapter)
    decoded = reference.decode([prompt for _, prompt in rows], **LIMITS)
    return [Rollout(example_id=row[0], hypotheses=beams) for row, beams in zip(rows, decoded, strict=True)]


def assert_same(found: list[Rollout], expected: list[Rollout]) -> None:
    assert [rollout.example_id for rollout in found] == [rollout.example_id for rollout in expected]
    for rollout, other in zip(found, expected, strict=True):
        assert [beam.text for beam in rollout.hypotheses] == [beam.text for beam in other.hypotheses]
        assert [beam.logp for beam in rollout.hypotheses] == pytest.approx(
            [beam.logp for beam in other.hypotheses], abs=1e-4
        )


def test_rollouts_are_in_order_and_those_of_one_decoder(
    pool: DecoderPool, reference: TransformersDecoder, tiny: Any, rows: list[Row]
) -> None:
    assert pool.wait_ready() == "transformers 5.19.0"
    for adapter in (tiny.adapters[0], tiny.adapters[1], None):
        pool.load_adapter(adapter)
        assert_same(pool.decode(rows, **LIMITS), expected_rollouts(reference, adapter, rows))
    assert pool.decode([], **LIMITS) == []


def test_a_pending_decode_keeps_the_adapter_it_started_with(
    pool: DecoderPool, reference: TransformersDecoder, tiny: Any, rows: list[Row]
) -> None:
    first, second = tiny.adapters
    pool.load_adapter(first)
    pending = pool.start_decode(rows, **LIMITS)
    pool.load_adapter(second)
    assert_same(pool.decode(rows, **LIMITS), expected_rollouts(reference, second, rows))
    assert_same(pending.result(), expected_rollouts(reference, first, rows))


def test_the_canary_is_every_decoders_score(pool: DecoderPool, reference: TransformersDecoder, tiny: Any) -> None:
    prompt, response = tiny.prompts[0], (17, 40, 5, 1)
    pool.load_adapter(tiny.adapters[1])
    reference.load_adapter(tiny.adapters[1])
    assert pool.canary(prompt, response) == pytest.approx([reference.score(prompt, response)] * 2, abs=1e-4)


def test_errors_are_one_line(pool: DecoderPool, tiny: Any) -> None:
    with pytest.raises(ValueError, match=r"^a decoder failed: a prompt of 200 tokens .*max_prompt_tokens[^\n]*$"):
        pool.decode([("long", [5] * 200)], **LIMITS)
    with pytest.raises(ValueError, match=r"^a decoder failed: /nowhere is not an adapter[^\n]*$"):
        pool.load_adapter(AdapterCheckpoint(path="/nowhere", version=9))
    pool.load_adapter(None)
    assert len(pool.decode([("short", tiny.prompts[0])], **LIMITS)) == 1


def test_an_engine_that_cannot_start_is_a_one_line_error(tmp_path: Path) -> None:
    model = DecoderModel(path=str(tmp_path / "none"), max_model_len=128)
    with DecoderPool(pool_config(), model, seed=0) as pool, pytest.raises(DecodingError, match=r"^[^\n]*none[^\n]*$"):
        pool.wait_ready()


def test_every_row_comes_back_when_a_decoder_is_killed(
    pool: DecoderPool, reference: TransformersDecoder, tiny: Any, rows: list[Row]
) -> None:
    pool.load_adapter(tiny.adapters[0])
    process_ids = ray.get([actor.process_id.remote() for actor in pool._actors])
    many = [(f"{copy}-{name}", prompt) for copy in range(100) for name, prompt in rows]
    pending = pool.start_decode(many, **LIMITS)
    time.sleep(0.3)
    os.kill(process_ids[0], signal.SIGKILL)
    assert not pending._future.done()
    assert_same(pending.result(), expected_rollouts(reference, tiny.adapters[0], many))
    restarted = ray.get([actor.process_id.remote() for actor in pool._actors])
    assert restarted[0] != process_ids[0]
    assert restarted[1] == process_ids[1]


def test_progress_is_logged_without_a_terminal(
    pool: DecoderPool, rows: list[Row], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sprec_ray.cluster.decoding._LOG_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO, logger="sprec_ray.cluster.decoding"):
        pool.decode(rows, label="negatives", **LIMITS)
    assert "negatives: 11 of 11 prompts" in caplog.text


def test_a_vllm_decoder_gives_the_same_rollouts(reference: TransformersDecoder, tiny: Any, rows: list[Row]) -> None:
    with DecoderPool(pool_config(engine="vllm", chunk_size=64), decoder_model(tiny), seed=0) as pool:
        assert pool.wait_ready().startswith("vllm ")
        for adapter in (None, tiny.adapters[0]):
            pool.load_adapter(adapter)
            assert_same(pool.decode(rows, **LIMITS), expected_rollouts(reference, adapter, rows))


def test_closing_fails_what_is_pending(tiny: Any, rows: list[Row]) -> None:
    pool = DecoderPool(pool_config(), decoder_model(tiny), seed=0)
    pending = pool.start_decode(rows * 50, **LIMITS)
    pool.close()
    with pytest.raises(DecodingError):
        pending.result()
