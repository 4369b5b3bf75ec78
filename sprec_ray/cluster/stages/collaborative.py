"""The stages of a collaborative model: trained on the run's examples, and measured on its rows."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path

import numpy as np

from sprec_ray.cluster.stages.candidates_evaluator import CandidatesEvaluator
from sprec_ray.cluster.stages.run_data import RunData
from sprec_ray.cluster.stages.stage_keeper import StageKeeper
from sprec_ray.cluster.stages.title_evaluator import TitleEvaluator
from sprec_ray.config.run import RunConfig
from sprec_ray.data.sources.source import SPLITS
from sprec_ray.recommenders.fit import fit_recommender
from sprec_ray.recommenders.recommender import Recommender, read_recommender
from sprec_ray.storage.artifacts import Stage, as_eval_result, read_rows, write_json
from sprec_ray.storage.timeline import Clock
from sprec_ray.types import EvalResult, Example

RECOMMENDER = "collaborative"
"""The stage of the collaborative model, and the label of its evaluation."""


class Collaborative:
    """Trains and measures the collaborative model of a run, here in the driver: it is small."""

    def __init__(self, config: RunConfig, folder: Path, data: RunData, keeper: StageKeeper, clock: Clock) -> None:
        self._config, self._folder, self._data, self._keeper, self._clock = config, folder, data, keeper, clock

    @cached_property
    def recommender(self) -> Recommender:
        """The model, trained on the training examples up to its best epoch on the valid ones."""
        stage, settings = Stage(self._folder / RECOMMENDER), self._config.collaborative
        if not self._keeper.is_done(stage):
            with self._clock.span(settings.model, "compute"), self._keeper.filling(stage, settings.model) as summary:
                trained = fit_recommender(
                    settings,
                    self._data.train,
                    self._data.valid,
                    self._data.catalog.titles,
                    seed=self._config.seed,
                )
                trained.save(stage.path)
                summary.update(dataclasses.asdict(trained.summary))
        return read_recommender(stage.path)

    def export(self) -> Path:
        """The folder of the model's scores as arrays, for whoever has another use of them.

        ``<split>.npy`` [rows, titles], float32, rows in the order of ``data/<split>.jsonl``, titles in that of
        ``titles.json``.
        """
        stage = Stage(self._folder / "scores")
        if not self._keeper.is_done(stage):
            with self._keeper.filling(stage, f"{self._config.collaborative.model}: scores of all rows"):
                write_json(stage.path / "titles.json", self._data.catalog.titles)
                for split in SPLITS:
                    rows = read_rows(self._folder / "data" / f"{split}.jsonl", Example)
                    scores_BI = self.recommender.scores([example.history for example in rows])
                    np.save(stage.path / f"{split}.npy", scores_BI, allow_pickle=False)
        return stage.path

    def evaluate(self, evaluations: Path, evaluator: TitleEvaluator | CandidatesEvaluator) -> EvalResult:
        """The metrics of the model alone."""
        stage = Stage(evaluations / RECOMMENDER)
        if not self._keeper.is_done(stage):
            scores_BI = self.recommender.scores([example.history for example in self._data.measured])
            with self._keeper.filling(stage, f"{self._config.collaborative.model}: evaluation") as summary:
                result = evaluator.evaluate_scores(RECOMMENDER, scores_BI, stage)
                summary.update(result=dataclasses.asdict(result))
        return as_eval_result(stage.summary["result"])
