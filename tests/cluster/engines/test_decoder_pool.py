from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import ray
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from sprec_ray.cluster.engines.catalog_index import CatalogIndex
from sprec_ray.cluster.engines.decoder_pool import DecoderActor, DecoderPool, DecodingError
from sprec_ray.cluster.engines.run_engines import Engines
from sprec_ray.config.run import DecodingConfig, RunConfig
from sprec_ray.data.prompts import render_response
from sprec_ray.decoding.catalog.request import CatalogSearch
from sprec_ray.decoding.catalog.trie import build_trie
from sprec_ray.decoding.engines.decoder_model import DecoderModel
from sprec_ray.decoding.engines.transformers import TransformersDecoder
from sprec_ray.storage.timeline import Clock
from sprec_ray.types import AdapterCheckpoint, Example, Rollout

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

WIDTH, NUM_NEW_TOKENS = 3, 8
LIMITS = {"beam_width": WIDTH, "max_new_tokens": NUM_NEW_TOKENS}
Row = tuple[str, tuple[int, ...]]


@pytest.fixture(scope="module")
def rows(tiny: Any) -> list[Row]:
    return [(f"row-{index}", tiny.prompts[index % len(tiny.prompts)][: 8 + index]) for index in range(11)]


@pytest.fixture(scope="module")
def reference(tiny: Any) -> TransformersDecoder:
    return TransformersDecoder(decoder_model(tiny), use_gpu=False)


@pytest.fixture(scope="module")
def pool(tiny: Any) -> Iterator[DecoderPool]:
    with DecoderPool(pool_config(num_decoders=2), decoder_model(tiny), seed=0, index=tiny_index(tiny)) as started:
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


def tiny_index(tiny: Any) -> CatalogIndex:
    tokenizer = AutoTokenizer.from_pretrained(tiny.path)
    titles = ("Dune", "Emma", "Ulysses", "The Hobbit", "1984", "Émile")
    responses = [
        [*tokenizer(render_response(title), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for title in titles
    ]
    return CatalogIndex(build_trie(responses, eos_token_id=tokenizer.eos_token_id), titles)


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
    assert pool.canary(prompt, response) == pytest.approx([reference.score(prompt, response)] * 4, abs=1e-4)


def test_errors_are_one_line(pool: DecoderPool, tiny: Any) -> None:
    with pytest.raises(ValueError, match=r"^a decoder failed: a prompt of 200 tokens .*max_prompt_tokens[^\n]*$"):
        pool.decode([("long", [5] * 200)], **LIMITS)
    with pytest.raises(ValueError, match=r"^/nowhere is not an adapter[^\n]*$"):
        pool.load_adapter(AdapterCheckpoint(path="/nowhere", version=9))
    pool.load_adapter(None)
    assert len(pool.decode([("short", tiny.prompts[0])], **LIMITS)) == 1


def test_an_engine_that_cannot_start_is_a_one_line_error(tmp_path: Path) -> None:
    model = DecoderModel(path=str(tmp_path / "none"), max_model_len=128)
    with DecoderPool(pool_config(), model, seed=0) as pool, pytest.raises(DecodingError, match=r"^[^\n]*none[^\n]*$"):
        pool.wait_ready()


def test_a_decoder_killed_while_it_decodes_changes_nothing(pool: DecoderPool, tiny: Any, rows: list[Row]) -> None:
    """The first finished chunk pulls the trigger: the killed decoder then has chunks of its own in flight."""
    pool.load_adapter(tiny.adapters[0])
    many = [(f"{copy}-{name}", prompt) for copy in range(6) for name, prompt in rows]
    undisturbed = pool.decode(many, **LIMITS)
    process_ids = ray.get([actor.process_id.remote() for actor in pool._actors])
    killed_after: list[int] = []

    def kill(text: str) -> bool:
        if not killed_after:
            os.kill(process_ids[0], signal.SIGKILL)
        killed_after.append(1)
        return True

    assert pool.decode(many, is_valid=kill, **LIMITS) == undisturbed  # bit for bit
    assert [rollout.example_id for rollout in undisturbed] == [name for name, _ in many]
    assert len(killed_after) == len(many)
    restarted = ray.get([actor.process_id.remote() for actor in pool._actors])
    assert restarted[0] != process_ids[0]
    assert restarted[1] == process_ids[1]


@pytest.mark.parametrize("kind", ["exact", "beam", "sample"])
def test_a_search_in_the_pool_is_the_decoders_whatever_the_chunks_and_whoever_is_killed(
    pool: DecoderPool,
    tiny: Any,
    reference: TransformersDecoder,
    rows: list[Row],
    monkeypatch: pytest.MonkeyPatch,
    kind: Literal["exact", "beam", "sample"],
) -> None:
    """A decoder is killed in the search that draws: each row's seed goes along."""
    search = CatalogSearch(kind=kind, num_answers=3)
    index = tiny_index(tiny)
    prompts = [prompt for _, prompt in rows]
    reference.load_adapter(tiny.adapters[0])
    found = reference.catalog.search(index.trie, prompts, search, seeds=range(len(rows)))
    expected = [index.hypotheses(answers) for answers in found]
    monkeypatch.setattr(pool, "_chunk_size", 2)
    pool.load_adapter(tiny.adapters[0])
    process_id = ray.get(pool._actors[0].process_id.remote())
    seen: list[str] = []

    def kill(text: str) -> bool:
        if not seen and kind == "sample":
            os.kill(process_id, signal.SIGKILL)
        seen.append(text)
        return True

    rollouts = pool.start_search(rows, search, is_valid=kill).result()
    assert (ray.get(pool._actors[0].process_id.remote()) != process_id) == (kind == "sample")
    assert [rollout.example_id for rollout in rollouts] == [name for name, _ in rows]
    assert len(seen) == len(rows)
    for rollout, hypotheses in zip(rollouts, expected, strict=True):
        assert [answer.text for answer in rollout.hypotheses] == [answer.text for answer in hypotheses]
        assert [answer.logp for answer in rollout.hypotheses] == pytest.approx([h.logp for h in hypotheses], abs=1e-4)
        assert rollout.gap == (None if search.kind == "beam" else 0.0)


def test_a_ranking_in_the_pool_begins_with_what_an_exact_search_finds(
    pool: DecoderPool, tiny: Any, rows: list[Row]
) -> None:
    pool.load_adapter(tiny.adapters[1])
    searched = pool.start_search(rows, CatalogSearch(num_answers=2)).result()
    ranked = pool.start_rank(rows, ["Emma"] * len(rows), CatalogSearch(num_answers=2)).result()
    for one, other in zip(searched, ranked, strict=True):
        assert [answer.text for answer in one.hypotheses] == [answer.text for answer in other.hypotheses]
        assert [answer.logp for answer in one.hypotheses] == pytest.approx([h.logp for h in other.hypotheses], abs=1e-4)
        assert other.target_rank is not None
        assert 0 <= other.target_rank < len(tiny_index(tiny).titles)


@pytest.mark.parametrize(("num_decoders", "chunk_size"), [(1, 1), (1, 64), (2, 1), (2, 2), (2, 64)])
def test_neither_chunks_nor_decoders_matter(
    pool: DecoderPool,
    reference: TransformersDecoder,
    tiny: Any,
    rows: list[Row],
    monkeypatch: pytest.MonkeyPatch,
    num_decoders: int,
    chunk_size: int,
) -> None:
    monkeypatch.setattr(pool, "_chunk_size", chunk_size)
    monkeypatch.setattr(pool, "_actors", pool._actors[:num_decoders])
    pool.load_adapter(tiny.adapters[1])
    assert_same(pool.decode(rows, **LIMITS), expected_rollouts(reference, tiny.adapters[1], rows))


def test_two_chunks_per_decoder_are_in_flight_at_most(
    pool: DecoderPool, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    """11 rows are 4 chunks of 3; ten times as many are 37. Two decoders hold 4 of them until fewer are left."""
    in_flight: list[int] = []
    wait = ray.wait

    def counted(references: list[Any], **options: Any) -> Any:
        in_flight.append(len(references))
        return wait(references, **options)

    monkeypatch.setattr(ray, "wait", counted)
    assert len(pool.decode(rows * 10, **LIMITS)) == 110
    assert in_flight[0] == max(in_flight) == 4
    assert in_flight[-1] == 1


def test_decoders_sleep_when_what_was_started_is_decoded_and_wake_for_the_next(
    pool: DecoderPool, reference: TransformersDecoder, tiny: Any, rows: list[Row]
) -> None:
    pool.load_adapter(tiny.adapters[0])
    expected = expected_rollouts(reference, tiny.adapters[0], rows)
    pending = pool.start_decode(rows, **LIMITS)
    pool.sleep()
    assert pending._future.done()
    assert_same(pending.result(), expected)
    assert_same(pool.decode(rows, **LIMITS), expected)
    pool.sleep()
    pool.wake()
    pool.wake()
    assert_same(pool.decode(rows, **LIMITS), expected)


def test_a_decoder_killed_asleep_takes_no_gpu_until_it_is_called(
    reference: TransformersDecoder, tiny: Any, rows: list[Row]
) -> None:
    """On a shared GPU the trainers compute when it starts again."""

    def has_engine(actor: Any) -> bool:
        return bool(ray.get(actor.__ray_call__.remote(lambda self: "_decoder" in self.__dict__)))

    with DecoderPool(pool_config(placement="colocate"), decoder_model(tiny), seed=0) as pool:
        pool.load_adapter(tiny.adapters[0])
        (actor,) = pool._actors
        assert has_engine(actor)
        pool.sleep()
        os.kill(ray.get(actor.process_id.remote()), signal.SIGKILL)
        assert not has_engine(actor)
        pool.sleep()
        assert not has_engine(actor)
        assert_same(pool.decode(rows, **LIMITS), expected_rollouts(reference, tiny.adapters[0], rows))


def test_progress_is_logged_without_a_terminal(
    pool: DecoderPool, rows: list[Row], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="sprec_ray.cluster.engines.progress"):
        first = pool.decode(rows[:1], **LIMITS)[0].hypotheses[0].text
        rollouts = pool.decode(rows, label="negatives", is_valid=lambda text: text == first, **LIMITS)
    share = 100 * sum(rollout.hypotheses[0].text == first for rollout in rollouts) / len(rows)
    assert 0 < share < 100
    assert re.search(rf"negatives: 11 of 11 prompts, [0-9.]+ prompts/s, {share:.1f} % valid", caplog.text)


def test_an_adapter_that_is_silently_not_applied_is_found_out(
    pool: DecoderPool, tiny: Any, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real decoders, of which the last forgets every adapter; the trainer's side is PEFT."""

    class Forgetful(DecoderActor):
        def load_adapter(self, adapter: Any) -> None:
            pass

    policy, prompt, response = tiny.adapters[0], list(tiny.prompts[0]), [17, 40, 5, 1]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny.path), policy.path)
    with torch.inference_mode():
        logps = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    logp = float(logps.gather(1, torch.tensor(response)[:, None]).sum())
    engines = Engines(RunConfig(), tmp_path, Clock(tmp_path))
    engines.__dict__["session"] = SimpleNamespace()
    engines._encoder = SimpleNamespace(prompt=lambda history, **_: prompt)
    engines.remember_canary(policy, {"prompt": prompt, "response": response, "logp": logp})
    example = Example(example_id="0", history=("Dune",), target="Emma")
    engines._pool = pool
    decode = partial(engines.decode, policy, [example], "model", search=1, label="")
    (rollout,) = decode().result()
    monkeypatch.setattr("sprec_ray.cluster.engines.decoder_pool.DecoderActor", Forgetful)
    with DecoderPool(pool_config(), decoder_model(tiny), seed=0) as forgetful:
        monkeypatch.setattr(pool, "_actors", pool._actors + forgetful._actors)
        with pytest.raises(DecodingError, match="it does not hold this adapter"):
            decode()
    assert rollout.example_id == "0"


def test_a_vllm_decoder_gives_the_same_rollouts(reference: TransformersDecoder, tiny: Any, rows: list[Row]) -> None:
    with DecoderPool(pool_config(engine="vllm", chunk_size=64), decoder_model(tiny), seed=0) as pool:
        assert pool.wait_ready().startswith("vllm ")
        for adapter in (None, tiny.adapters[0]):
            pool.load_adapter(adapter)
            assert_same(pool.decode(rows, **LIMITS), expected_rollouts(reference, adapter, rows))


def test_finished_chunks_are_kept_and_an_interrupted_decode_goes_on_after_them(
    pool: DecoderPool, tiny: Any, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve rows are 4 chunks. The decoding ends at the second; a second decode computes the other two."""
    pool.load_adapter(tiny.adapters[0])
    rows = [*rows, ("row-11", rows[0][1])]
    undisturbed = pool.decode(rows, **LIMITS)
    seen: list[str] = []

    def fail_at_the_sixth(text: str) -> bool:
        seen.append(text)
        if len(seen) == 6:
            raise RuntimeError("interrupted")
        return True

    with pytest.raises(RuntimeError, match="interrupted"):
        pool.decode(rows, chunks=tmp_path, is_valid=fail_at_the_sixth, **LIMITS)
    kept = sorted(file.name for file in tmp_path.iterdir())
    assert len(kept) == 2
    delivered: list[list[Rollout]] = []
    decoded: list[int] = []
    wait = ray.wait

    def counted(references: list[Any], **options: Any) -> Any:
        decoded.append(len(references))
        return wait(references, **options)

    monkeypatch.setattr(ray, "wait", counted)
    assert pool.decode(rows, chunks=tmp_path, then=delivered.append, **LIMITS) == undisturbed  # bit for bit
    assert max(decoded) == 2  # as many as were left
    assert delivered == [undisturbed]
    assert len(list(tmp_path.iterdir())) == 4


def test_chunks_of_other_rows_are_not_taken(pool: DecoderPool, tiny: Any, rows: list[Row], tmp_path: Path) -> None:
    pool.load_adapter(tiny.adapters[0])
    others = [(f"other-{name}", prompt) for name, prompt in reversed(rows)]
    pool.decode(others, chunks=tmp_path, **LIMITS)
    assert pool.decode(rows, chunks=tmp_path, **LIMITS) == pool.decode(rows, **LIMITS)


def test_closing_fails_what_is_pending(tiny: Any, rows: list[Row]) -> None:
    pool = DecoderPool(pool_config(), decoder_model(tiny), seed=0)
    pending = pool.start_decode(rows * 50, **LIMITS)
    pool.close()
    with pytest.raises(DecodingError):
        pending.result()
