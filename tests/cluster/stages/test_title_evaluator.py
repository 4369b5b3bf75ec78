"""What a policy's evaluation leaves behind, without Ray: the scoring job measures the same."""

import json
import math
from pathlib import Path

import pytest

from sprec_ray.cluster.stages.run_data import RunData
from sprec_ray.cluster.stages.title_evaluator import TitleEvaluator
from sprec_ray.config.run import RunConfig
from sprec_ray.data.catalog import Catalog
from sprec_ray.metrics.compute import METRICS
from sprec_ray.reports.scores_file import write_scores
from sprec_ray.storage.artifacts import Stage, read_json, write_text
from sprec_ray.types import Example, Hypothesis, Rollout

TITLES = ("Dune", "Emma", "Ulysses", "The End", "The Trial")
GENRES = {"Dune": ("sf",), "Emma": ("romance",), "Ulysses": ("drama", "romance"), "The End": ("sf", "drama")}
TARGETS = ("Dune", "Dune", "Emma", "Dune", "The End", "Ulysses")
RANKED = [["Dune", "Emma"], ["Ulysses", "Dune"], ["Emma", "The End"], ["Dune", "The Trial"]] * 2


def unused(*_: object) -> None:
    raise AssertionError("ready titles need neither embeddings nor a model")


@pytest.fixture
def evaluator(tmp_path: Path) -> TitleEvaluator:
    data = tmp_path / "data"
    Catalog(titles=TITLES, genres=GENRES).write(data / "catalog.json")
    for split in ("train", "test"):
        rows = [
            {"example_id": f"{row}:1", "history": [TITLES[row % 5], "The End"], "target": TARGETS[row % 6]}
            for row in range(6 if split == "train" else len(RANKED))
        ]
        write_text(data / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    read = RunData(data, "test", read=lambda path: [Example(**row) for row in map(json.loads, path.open())])
    config = RunConfig()
    return TitleEvaluator(config, read, read.measured, model_path=unused, embed=unused, adjustment=unused)


def test_the_scoring_job_repeats_every_metric(evaluator: TitleEvaluator, tmp_path: Path) -> None:
    rollouts = [
        Rollout(
            example_id=str(row),
            hypotheses=tuple(
                Hypothesis(text=f'"{title}"\n', logp=-1.0, num_tokens=3, finished=True) for title in titles
            ),
        )
        for row, titles in enumerate(RANKED)
    ]
    stage = Stage(tmp_path / "evaluations" / "sft").start()
    measured = evaluator.evaluate("sft", None, rollouts, stage).metrics
    evaluator.write_catalog(tmp_path / "evaluations" / "catalog")
    write_scores(
        [
            f"predictions={stage.path / 'predictions.json'}",
            f"grounded={stage.path / 'grounded.json'}",
            f"catalog={tmp_path / 'evaluations' / 'catalog'}",
            f"out={tmp_path / 'metrics.json'}",
        ]
    )
    scored = read_json(tmp_path / "metrics.json")
    keys = {f"{name}@{k}" for name in METRICS for k in (1, 5)} - {"ild@1"}
    assert keys <= set(measured)
    assert not [key for key in keys if math.isnan(measured[key])]
    assert {key: scored[key] for key in keys} == {key: measured[key] for key in keys}
