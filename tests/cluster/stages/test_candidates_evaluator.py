"""The evaluation of candidates without engines: what is asked of the workers, written and measured."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sprec_ray.cluster.engines.tasks import ScoreTask
from sprec_ray.cluster.stages.candidates_evaluator import CandidatesEvaluator
from sprec_ray.config.load import load_config
from sprec_ray.data.catalog import Catalog
from sprec_ray.data.tokens import TextSettings
from sprec_ray.storage.artifacts import Stage, read_json
from sprec_ray.types import AdapterCheckpoint, Example, Hypothesis, Rollout

TEXT = TextSettings(template="short", noun="book", max_prompt_tokens=100, max_response_tokens=20)
ROWS = [
    Example(example_id="0", history=("Emma",), target="Dune", candidates=("1984", "Dune", "It")),
    Example(example_id="1", history=("Emma",), target="1984", candidates=("1984", "Dune", "It")),
]
CONFIG = load_config(["data.task=candidates", "data.template=short", "data.num_candidates=3", "evaluation.k=[1,3]"])


def evaluator(rows: list[Example], asked: list[ScoreTask]) -> CandidatesEvaluator:
    def score(task: ScoreTask, label: str) -> dict[str, Any]:
        asked.append(task)
        return {"logps": [[[-2.0, -1.0], [-1.0], [-1.5, -0.5]]] * len(rows), "compute_s": 0.0}

    train = [Example(example_id="9", history=("Emma",), target="It")]
    data: Any = SimpleNamespace(
        measured=rows,
        train=train,
        catalog=Catalog(titles=("Emma", "It", "Dune"), genres={}),
        popularity=Counter(Dune=3),
    )
    return CandidatesEvaluator(CONFIG, data, model_path=lambda: "model", text=TEXT, score=score)


def rollout(text: str) -> Rollout:
    return Rollout(example_id="0", hypotheses=(Hypothesis(text=text, logp=-1.0, num_tokens=3, finished=True),))


def test_answers_are_judged_and_candidates_ranked(tmp_path: Path) -> None:
    """Both rows rank Dune first: one hit of two; NDCG@3 is (1 + 1 / log2(4)) / 2."""
    asked: list[ScoreTask] = []
    stage = Stage(tmp_path / "sft").start()
    policy = AdapterCheckpoint(path="somewhere", version=1)
    result = evaluator(ROWS, asked).evaluate("sft", policy, [rollout('"Dune"\n'), rollout("nothing")], stage)
    assert (result.metrics["hit_ratio@1"], result.metrics["valid_ratio"], result.metrics["hr@1"]) == (0.5, 0.5, 0.5)
    assert result.metrics["title_ratio"] == 0.5
    assert result.metrics["ndcg@3"] == pytest.approx(0.75)
    assert asked[0].policy.adapter == "somewhere"
    assert [(group.chosen, *group.rejected) for group in asked[0].groups] == [row.candidates for row in ROWS]
    assert read_json(stage.path / "grounded.json") == [["Dune", "It", "1984"]] * 2
    predictions = read_json(stage.path / "predictions.json")
    assert predictions[0]["input"].endswith('Candidates:\n"1984", "Dune", "It"\nNext item:\n')


def test_baselines_always_name_a_candidate() -> None:
    popularity, last_item, random = evaluator(ROWS, []).baselines()
    assert (popularity.label, last_item.label, random.label) == ("popularity", "last_item", "random")
    assert last_item.top_items == (("It", 2),)  # It followed Emma
    assert popularity.metrics["hit_ratio@1"] == popularity.metrics["hr@1"] == 0.5
    assert popularity.metrics["valid_ratio"] == random.metrics["valid_ratio"] == 1.0


def test_rows_without_their_target_are_refused() -> None:
    rows = [Example(example_id="7", history=("Emma",), target="Emma", candidates=("1984", "Dune", "It"))]
    with pytest.raises(ValueError, match="the example 7 lacks its target 'Emma'"):
        evaluator(rows, [])


def test_scores_of_the_whole_catalogue_rank_the_candidates(tmp_path: Path) -> None:
    """1984 is not in the catalogue; Dune beats It in the first row and loses in the second, whose target is 1984."""
    scores_BI = np.array([[9.0, 1.0, 2.0], [9.0, 2.0, 1.0]])
    stage = Stage(tmp_path / "collaborative").start()
    result = evaluator(ROWS, []).evaluate_scores("collaborative", scores_BI, stage)
    assert (result.metrics["hit_ratio@1"], result.metrics["hr@1"], result.metrics["valid_ratio"]) == (0.5, 0.5, 1.0)
    assert read_json(stage.path / "grounded.json") == [["Dune", "It", "1984"], ["It", "Dune", "1984"]]
