"""The canary: a decoder that does not hold the adapter it was given is found out before it decodes."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sprec_ray.cluster.decoding import DecodingError
from sprec_ray.cluster.engines import Engines
from sprec_ray.cluster.timeline import Clock
from sprec_ray.config import RunConfig
from sprec_ray.types import AdapterCheckpoint, Example

POLICY = AdapterCheckpoint(path="somewhere/sft", version=1)
CANARY = {"prompt": [1, 2, 3], "response": [4, 5], "logp": -3.0}
EXAMPLE = Example(example_id="0", history=("Dune",), target="Emma")


class FakePool:
    """Decoders that give the canary the log-probabilities they are told to."""

    def __init__(self, *logps: float) -> None:
        self.logps = list(logps)
        self.loaded: AdapterCheckpoint | None = None

    def load_adapter(self, adapter: AdapterCheckpoint | None) -> None:
        self.loaded = adapter

    def canary(self, prompt: Sequence[int], response: Sequence[int]) -> list[float]:
        assert (prompt, response) == (CANARY["prompt"], CANARY["response"])
        return self.logps

    def start_decode(self, rows: Sequence[Any], **limits: Any) -> str:
        return f"{len(rows)} rows started"


def engines_with(pool: FakePool, folder: Path) -> Engines:
    engines = Engines(RunConfig(), folder, Clock(folder))
    engines.__dict__["session"] = SimpleNamespace()
    engines._pool = pool  # type: ignore[assignment]
    engines._encoder = SimpleNamespace(prompt=lambda history: [1, 2])
    engines.remember_canary(POLICY, CANARY)
    return engines


def test_a_decoder_that_agrees_with_the_trainer_may_decode(tmp_path: Path) -> None:
    pool = FakePool(-3.0, -3.05)
    pending = engines_with(pool, tmp_path).decode(POLICY, [EXAMPLE], "model", beam_width=2, label="")
    assert str(pending) == "1 rows started"
    assert pool.loaded == POLICY


@pytest.mark.parametrize("wrong", [-3.2, -2.5, float("nan")])
def test_one_decoder_that_disagrees_stops_the_run(wrong: float, tmp_path: Path) -> None:
    """Two response tokens and a tolerance of 0.05 nats each: 0.1 nats may differ, 0.2 may not."""
    engines = engines_with(FakePool(-3.0, wrong), tmp_path)
    with pytest.raises(DecodingError, match=r"where the trainer gave -3.000 .* somewhere/sft: it does not hold"):
        engines.decode(POLICY, [EXAMPLE], "model", beam_width=2, label="")


def test_the_base_model_has_no_canary(tmp_path: Path) -> None:
    pool = FakePool(float("nan"))
    engines_with(pool, tmp_path).decode(None, [EXAMPLE], "model", beam_width=1, label="")
    assert pool.loaded is None
