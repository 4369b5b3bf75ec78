"""How policies are measured with a second opinion, without Ray and without a model."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sprec_ray.cluster.stages.measuring import Measurement
from sprec_ray.cluster.stages.run_data import RunData
from sprec_ray.cluster.stages.title_evaluator import TitleEvaluator
from sprec_ray.config.load import load_config
from sprec_ray.data.catalog import Catalog
from sprec_ray.evaluation.adjustment import GAMMAS
from sprec_ray.storage.artifacts import Stage, write_rows
from sprec_ray.storage.timeline import Clock, read_timeline
from sprec_ray.types import Example, Hypothesis, Rollout

TITLES = tuple(f"T{index}" for index in range(6))
ROWS = [Example(example_id=str(row), history=("T1",), target=TITLES[row]) for row in range(4)]


class Engines:
    """Answers T0 to everything, after a while."""

    decoder_name = "fake"
    read = None

    def decode(self, policy: None, examples: list[Example], model_path: str, **_: Any) -> Any:
        def result() -> list[Rollout]:
            time.sleep(0.01)
            answer = Hypothesis(text='"T0"\n', logp=-1.0, num_tokens=3, finished=True)
            return [Rollout(example_id=example.example_id, hypotheses=(answer,)) for example in examples]

        return SimpleNamespace(result=result)


def measure(tmp_path: Path, *overrides: str) -> Measurement:
    Catalog(TITLES, {}).write(tmp_path / "data" / "catalog.json")
    for split in ("train", "valid", "test"):
        write_rows(tmp_path / "data" / f"{split}.jsonl", ROWS)
    config = load_config(["evaluation.adjustment=popularity", "evaluation.gamma=valid", *overrides])
    data, clock = RunData(tmp_path / "data", "test"), Clock(tmp_path)
    engines: Any = Engines()
    return Measurement(config, data, engines, clock, model_path=lambda: "model", recommender=lambda: None)  # type: ignore[arg-type,return-value]


def test_choosing_gamma_is_part_of_what_a_measurement_takes(tmp_path: Path) -> None:
    """Nine times the validation rows are most of D3's decoding: the costs of a comparison are made of these spans."""
    measure(tmp_path).decode("sft", None, Stage(tmp_path / "evaluations" / "sft"), rows="test")
    decoded = [span.name for span in read_timeline(tmp_path) if span.kind == "decode"]
    assert decoded == [*(f"sft: valid rows, gamma {gamma:g}" for gamma in GAMMAS), "sft: test rows"]
    assert all(span.duration_s >= 0.01 for span in read_timeline(tmp_path) if span.kind == "decode")


def test_answers_that_are_only_grounded_by_gamma_are_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grounding by embeddings re-ranks the same answers for every gamma; of equal NDCGs the smallest one is taken."""
    tried: list[float] = []

    def result(self: TitleEvaluator, label: str, policy: None, rollouts: list[Rollout], *, gamma: float) -> Any:
        assert [rollout.example_id for rollout in rollouts] == [row.example_id for row in ROWS]
        tried.append(gamma)
        return SimpleNamespace(metrics={"ndcg@5": 0.5 if gamma in {0.25, 1.0} else 0.4})

    monkeypatch.setattr(TitleEvaluator, "result", result)
    measurement = measure(tmp_path, "evaluation.grounding=policy")
    found = measurement.decode("sft", None, Stage(tmp_path / "evaluations" / "sft"), rows="test")[1]
    assert (tuple(tried), found["gamma"]) == (GAMMAS, 0.25)
    decoded = [span.name for span in read_timeline(tmp_path) if span.kind == "decode"]
    assert decoded == ["sft: valid rows, gamma 0", "sft: test rows"]
