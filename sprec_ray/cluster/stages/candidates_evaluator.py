"""Measures a policy on rows whose prompts list candidates, with log-probabilities computed by the training workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sprec_ray.cluster.engines.tasks import ReadPolicy, ScoreTask
from sprec_ray.cluster.stages.run_data import RunData
from sprec_ray.cluster.stages.worker_reads import WorkerReads
from sprec_ray.config.run import RunConfig
from sprec_ray.data.candidate_lists import check_candidates
from sprec_ray.data.prompts import render_prompt, render_response
from sprec_ray.data.sequences import derive_rng
from sprec_ray.data.tokens import TextSettings
from sprec_ray.evaluation.choices import candidate_rows, evaluate_candidates, rank_candidates
from sprec_ray.metrics.places import Floats
from sprec_ray.recommenders.fit import last_item_scores
from sprec_ray.storage.artifacts import Stage, write_added, write_json
from sprec_ray.types import AdapterCheckpoint, EvalResult, Example, PreferenceGroup, Rollout

Score = Callable[[ScoreTask, str], dict[str, Any]]
"""Runs a ScoreTask on the training workers under a label."""


class CandidatesEvaluator:
    """The measured rows and their candidates, the same for every policy of a run: the evaluator of S-DPO's protocol.

    Raises ValueError for rows without their target among the candidates.
    """

    def __init__(
        self, config: RunConfig, data: RunData, *, model_path: Callable[[], str], text: TextSettings, score: Score
    ) -> None:
        for example in data.measured:
            check_candidates(example, num=config.data.num_candidates)
        self._config, self._data, self._rows = config, data, data.measured
        self._model_path, self._text, self.reads = model_path, text, WorkerReads(score)

    def evaluate(
        self,
        label: str,
        policy: AdapterCheckpoint | None,
        rollouts: Sequence[Rollout],
        stage: Stage,
        *,
        gamma: float = 0.0,
    ) -> EvalResult:
        """Judge the greedy answer of every row, and rank its candidates by their log-probabilities.

        ``predictions.json`` in the stage's folder holds the answers, ``grounded.json`` the candidates, best first,
        ``logps.json`` their log-probabilities in the order of the prompt, and ``rows.json`` what every row adds to each
        metric. There is no second opinion on candidates:
        ``gamma`` is 0.
        """
        assert not gamma, "RunConfig refuses adjustments of candidates"
        texts = [rollout.hypotheses[0].text for rollout in rollouts]
        return self._evaluate(label, texts, self._logps(label, policy), stage)

    def evaluate_scores(self, label: str, scores_BI: npt.NDArray[np.floating], stage: Stage) -> EvalResult:
        """Rank each row's candidates by an array of scores of the catalogue's titles; the best one is the answer.

        A candidate outside the catalogue comes last.
        """
        scores_BC = self._of_candidates(scores_BI)
        return self._evaluate(label, self._best(scores_BC), scores_BC, stage)

    def baselines(self) -> list[EvalResult]:
        """What the same rows give to three rules that learn nothing.

        The candidate with most training events, the one that followed the history's last title most often, and chance.
        """
        rng = derive_rng(self._config.seed, "random baseline")
        random_BC = rng.random((len(self._rows), self._config.data.num_candidates))
        popularity = self._data.popularity
        counts_BC = np.array([[popularity[title] for title in row.candidates] for row in self._rows], dtype=np.float64)
        # Candidates of equal popularity are in random order.
        data, histories = self._data, [row.history for row in self._rows]
        followed_BC = self._of_candidates(last_item_scores(data.train, data.catalog.titles, histories))
        scores = {"popularity": counts_BC + random_BC, "last_item": followed_BC, "random": random_BC}
        return [self._measure(label, self._best(scores_BC), scores_BC) for label, scores_BC in scores.items()]

    def _of_candidates(self, scores_BI: npt.NDArray[np.floating]) -> Floats:
        """The scores of each row's candidates, [B, C], from those of the catalogue's titles."""
        index_of = self._data.catalog.index_of
        return np.array(
            [
                [scores_I.min() - 1 if (at := index_of(title)) is None else scores_I[at] for title in row.candidates]
                for row, scores_I in zip(self._rows, scores_BI, strict=True)
            ],
            dtype=np.float64,
        )

    def _evaluate(self, label: str, texts: Sequence[str], logps_BC: Floats, stage: Stage) -> EvalResult:
        self._write(stage.path, texts, logps_BC)
        found = candidate_rows(texts, logps_BC, self._rows, ks=self._config.evaluation.k, titles=self._data.catalog)
        write_added(stage.path, [row.example_id for row in self._rows], found)
        return self._measure(label, texts, logps_BC)

    def _measure(self, label: str, texts: Sequence[str], logps_BC: Floats) -> EvalResult:
        ks, titles = self._config.evaluation.k, self._data.catalog
        return evaluate_candidates(label, texts, logps_BC, self._rows, ks=ks, titles=titles)

    def _best(self, scores_BC: Floats) -> list[str]:
        """Responses that name each row's best candidate."""
        places = rank_candidates(scores_BC)[:, 0].tolist()
        return [render_response(row.candidates[place]) for row, place in zip(self._rows, places, strict=True)]

    def _logps(self, label: str, policy: AdapterCheckpoint | None) -> Floats:
        read = ReadPolicy.of(self._config.model, self._model_path(), policy)
        task = ScoreTask(policy=read, groups=tuple(_in_prompt_order(row) for row in self._rows), text=self._text)
        summary = self.reads(task, f"{label}: candidates")
        return np.array([[sum(tokens) for tokens in logps] for logps in summary["logps"]], dtype=np.float64)

    def _write(self, folder: Path, texts: Sequence[str], logps_BC: Floats) -> None:
        data = self._config.data
        predictions = [
            {
                "input": render_prompt(row.history, template=data.template, noun=data.noun, candidates=row.candidates),
                "output": f'"{row.target}"',
                "predict": [text],
                "candidates": row.candidates,
            }
            for row, text in zip(self._rows, texts, strict=True)
        ]
        write_json(folder / "predictions.json", predictions)
        ranked_BC = rank_candidates(logps_BC)
        ranked = [
            [row.candidates[place] for place in places] for row, places in zip(self._rows, ranked_BC, strict=True)
        ]
        write_json(folder / "grounded.json", ranked)
        write_json(folder / "logps.json", logps_BC.tolist())


def _in_prompt_order(row: Example) -> PreferenceGroup:
    """All candidates as responses; which comes first says nothing here."""
    first, *others = row.candidates
    return PreferenceGroup(
        example_id=row.example_id, history=row.history, chosen=first, rejected=tuple(others), candidates=row.candidates
    )
