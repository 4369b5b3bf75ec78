"""Measures a policy: decodes the rows, with a second opinion on the titles where one is configured, and scores them."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from sprec_ray.cluster.engines.run_engines import Engines
from sprec_ray.cluster.engines.search_settings import evaluation_search
from sprec_ray.cluster.stages.candidates_evaluator import CandidatesEvaluator
from sprec_ray.cluster.stages.run_data import RunData
from sprec_ray.cluster.stages.title_evaluator import TitleEvaluator
from sprec_ray.config.run import RunConfig
from sprec_ray.data.prompts import parse_response
from sprec_ray.evaluation.adjustment import GAMMAS, Adjustment, lm_weight
from sprec_ray.evaluation.grounding import Embedder
from sprec_ray.recommenders.recommender import Recommender, log_softmax
from sprec_ray.storage.artifacts import Stage
from sprec_ray.storage.timeline import Clock
from sprec_ray.types import AdapterCheckpoint, EvalResult, Example, Rollout

logger = logging.getLogger(__name__)

_ROWS_TO_CHOOSE_BY = 512


class Measurement:
    """What every policy of a run is measured with."""

    def __init__(
        self,
        config: RunConfig,
        data: RunData,
        engines: Engines,
        clock: Clock,
        *,
        model_path: Callable[[], str],
        recommender: Callable[[], Recommender],
    ) -> None:
        self._config, self._data, self._engines, self._clock = config, data, engines, clock
        self._model_path, self._recommender = model_path, recommender

    def decode(
        self, label: str, policy: AdapterCheckpoint | None, stage: Stage, *, rows: str
    ) -> tuple[list[Rollout], dict[str, Any]]:
        """The policy's answers to the rows, and how they came: the engine, gamma, and what was tried for gamma."""
        gamma, tried = self._gamma(label, policy, stage)
        start, name = time.time(), f"{label}: {rows} rows"
        rollouts = self._decode(policy, self._data.measured, stage.partial / "chunks", name, gamma)
        self._clock.add(name, "decode", start, time.time() - start)
        return rollouts, {"engine": self._engines.decoder_name, "gamma": gamma, **tried}

    def score(
        self,
        label: str,
        policy: AdapterCheckpoint | None,
        rollouts: Sequence[Rollout],
        stage: Stage,
        *,
        gamma: float,
    ) -> EvalResult:
        """The metrics of the answers; the stage's folder gets the answers and what they were ranked to."""
        start, self.evaluator.reads.waited_s = time.time(), 0.0
        result = self.evaluator.evaluate(label, policy, rollouts, stage, gamma=gamma)
        busy_s = time.time() - start - self.evaluator.reads.waited_s
        self._clock.add(f"{label}: grounding", "evaluate", time.time() - busy_s, busy_s)
        if policy is not None and result.metrics.get("valid", 1.0) < 0.9:
            logger.warning("%s: only %.1f %% of the answers are titles", label, 100 * result.metrics["valid"])
        return result

    def _gamma(
        self, label: str, policy: AdapterCheckpoint | None, stage: Stage
    ) -> tuple[float, dict[str, dict[float, float]]]:
        """The weight of the second opinion, and the NDCG of all that were tried; 0 without one."""
        evaluation = self._config.evaluation
        if evaluation.adjustment == "none":
            return 0.0, {}
        if evaluation.gamma != "valid":
            return evaluation.gamma, {}
        chooser, found = self._evaluator(self._data.valid[:_ROWS_TO_CHOOSE_BY]), {}
        metric = f"ndcg@{max(evaluation.k)}"
        for gamma in GAMMAS:
            chunks, name = stage.partial / f"gamma-{gamma:g}", f"{label}: valid rows, gamma {gamma:g}"
            if gamma == GAMMAS[0] or self._steers_search(gamma):  # else the answers are those of every other gamma
                with self._clock.span(name, "decode"):
                    rollouts = self._decode(policy, chooser.rows, chunks, name, gamma)
            with self._clock.span(f"{name}: grounding", "evaluate"):
                found[gamma] = chooser.result(label, policy, rollouts, gamma=gamma).metrics[metric]
        best = max(found, key=lambda gamma: (found[gamma], -gamma))
        if best == max(GAMMAS):
            logger.warning("%s: gamma %g is the largest of those tried; a larger one may be better", label, best)
        logger.info("%s: gamma %g of %s, by %s on %d valid rows", label, best, GAMMAS, metric, len(chooser.rows))
        return best, {metric: found}

    def _steers_search(self, gamma: float) -> bool:
        """Whether the second opinion weighs in on which answers are found, and not only on how they are grounded."""
        is_search = not isinstance(evaluation_search(self._config), int)
        return gamma != 0 and is_search and self._config.evaluation.searches

    def _decode(
        self, policy: AdapterCheckpoint | None, examples: Sequence[Example], chunks: Path, label: str, gamma: float
    ) -> list[Rollout]:
        search, options = evaluation_search(self._config), dict[str, Any]()
        grounding = self._config.evaluation.grounding
        if self._steers_search(gamma):
            assert not isinstance(search, int)
            search = dataclasses.replace(search, lm_weight=lm_weight(gamma))
            options["item_logps"] = self.adjustment.logps([example.history for example in examples])

        def is_valid(text: str) -> bool:
            return parse_response(text) in self._data.catalog

        return self._engines.decode(
            policy,
            examples,
            self._model_path(),
            search=search,
            rank=grounding == "ranking" and self._config.data.task == "next_item",
            is_valid=is_valid,
            chunks=chunks,
            label=label,
            **options,
        ).result()

    @cached_property
    def adjustment(self) -> Adjustment:
        """The second opinion."""
        kind = self._config.evaluation.adjustment
        assert kind != "none"
        return Adjustment(
            kind,
            self._data.catalog,
            popularity=lambda title: self._data.popularity[title],
            log_probs=lambda histories: log_softmax(self._recommender().scores(histories)),
        )

    @cached_property
    def evaluator(self) -> TitleEvaluator | CandidatesEvaluator:
        """Scores the rows that policies are measured on, by the protocol of the task."""
        if self._config.data.task == "candidates":
            return CandidatesEvaluator(
                self._config,
                self._data,
                model_path=self._model_path,
                text=self._engines.text,
                score=self._engines.read,
            )
        return self._evaluator(self._data.measured)

    def title_embedder(self) -> Embedder:
        """``TitleEvaluator.title_embedder``, whatever the task."""
        return self._evaluator(self._data.measured).title_embedder()

    def _evaluator(self, rows: list[Example]) -> TitleEvaluator:
        return TitleEvaluator(
            self._config,
            self._data,
            rows,
            model_path=self._model_path,
            embed=self._engines.read,
            adjustment=lambda: self.adjustment,
        )
