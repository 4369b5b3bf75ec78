"""Ranks the catalogue by a policy's answers, by scores and by simple rules, and measures the rankings of the rows.

The answers are titles that were searched or ranked, or texts that embeddings ground: a sentence model's, or the
policy's, which the training workers compute.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sprec_ray.cluster.engines.tasks import EmbedTask, ReadPolicy
from sprec_ray.cluster.stages.run_data import RunData
from sprec_ray.cluster.stages.worker_reads import WorkerReads
from sprec_ray.config.run import RunConfig
from sprec_ray.data.prompts import parse_response, render_prompt
from sprec_ray.data.sequences import derive_rng
from sprec_ray.evaluation.adjustment import Adjustment
from sprec_ray.evaluation.evaluate import (
    EvaluationTask,
    Ranking,
    evaluate_predictions,
    evaluate_ranking,
    rank_by_embedding,
    rank_lists,
)
from sprec_ray.evaluation.grounding import Embedder, ground_adjusted, sentence_embedder, text_to_ground
from sprec_ray.metrics.genres import kept_genres
from sprec_ray.metrics.ranks import rank_scores
from sprec_ray.recommenders.fit import last_item_scores
from sprec_ray.storage.artifacts import Stage, write_json
from sprec_ray.types import AdapterCheckpoint, EvalResult, Example, Rollout

RunEmbedding = Callable[[EmbedTask, str], dict[str, Any]]
"""Runs an EmbedTask on the training workers under a label."""


class TitleEvaluator:
    """The test rows, the catalogue and the way titles are embedded: the same for every policy of a run."""

    def __init__(
        self,
        config: RunConfig,
        data: RunData,
        rows: Sequence[Example],
        *,
        model_path: Callable[[], str],
        embed: RunEmbedding,
        adjustment: Callable[[], Adjustment],
    ) -> None:
        self._config, self._catalog, self._model_path = config, data.catalog, model_path
        self.rows, self._train = rows, data.train
        """What is measured on."""
        self.reads = WorkerReads(embed)
        self._adjustment, self._popularity = adjustment, data.popularity
        self._task = EvaluationTask(
            targets=[example.target for example in rows],
            histories=[example.history for example in rows],
            catalog=data.catalog,
            kept_genres=kept_genres(data.popularity, data.catalog.genres, num=config.evaluation.num_genres),
            popularity=data.popularity,
            ks=config.evaluation.k,
        )

    def evaluate(
        self,
        label: str,
        policy: AdapterCheckpoint | None,
        rollouts: Sequence[Rollout],
        stage: Stage,
        *,
        gamma: float = 0.0,
    ) -> EvalResult:
        """Rank titles by the hypotheses of every row, and by the second opinion with the weight gamma; measure them.

        ``predictions.json`` and ``grounded.json`` in the stage's folder, and the ``catalog`` folder beside it, are what
        ``jobs.score_predictions`` reads: it must give the same numbers.
        """
        ranking = self._rank(label, policy, rollouts, gamma)
        data = self._config.data
        write_json(
            stage.path / "predictions.json",
            [
                {
                    "input": render_prompt(example.history, template=data.template, noun=data.noun),
                    "output": f'"{example.target}"',
                    "predict": [text],
                }
                for example, text in zip(self.rows, _generated(rollouts), strict=True)
            ],
        )
        self._write_ranking(ranking, stage)
        return self._measure(label, ranking, rollouts)

    def result(
        self, label: str, policy: AdapterCheckpoint | None, rollouts: Sequence[Rollout], *, gamma: float
    ) -> EvalResult:
        """What ``evaluate`` returns, with nothing written."""
        return self._measure(label, self._rank(label, policy, rollouts, gamma), rollouts)

    def evaluate_scores(self, label: str, scores_BI: npt.NDArray[np.floating], stage: Stage) -> EvalResult:
        """Rank titles by an array of scores and measure them; ``grounded.json`` as of ``evaluate``."""
        ranking = self._ranking_of(scores_BI)
        self._write_ranking(ranking, stage)
        return evaluate_ranking(label, ranking, self._task)

    def _ranking_of(self, scores_BI: npt.NDArray[np.floating]) -> Ranking:
        ranked_BK = rank_scores(scores_BI, max(self._task.ks))
        return Ranking(ranked_BK=ranked_BK, names=self._catalog.titles, counts={})

    def _rank(self, label: str, policy: AdapterCheckpoint | None, rollouts: Sequence[Rollout], gamma: float) -> Ranking:
        grounding = self._config.evaluation.grounding
        if self._config.evaluation.searches:
            return rank_lists([_titles(rollout) for rollout in rollouts], self._task)
        embed = self.title_embedder() if grounding == "sentence" else self._policy_embedder(label, policy)
        if not gamma:
            return rank_by_embedding(_generated(rollouts), self._task, embed)
        ranked_BK = ground_adjusted(
            [text_to_ground(text) for text in _generated(rollouts)],
            self._catalog,
            embed,
            self._adjustment().shares(self._task.histories),
            gamma=gamma,
            k=max(self._task.ks),
        )
        return Ranking(ranked_BK=ranked_BK, names=self._catalog.titles, counts={})

    def _measure(self, label: str, ranking: Ranking, rollouts: Sequence[Rollout]) -> EvalResult:
        grounding = self._config.evaluation.grounding
        result = evaluate_ranking(label, ranking, self._task, generated=_generated(rollouts))
        found = {
            "num_inexact_rows": sum(bool(rollout.gap) for rollout in rollouts),
            "num_answer_tokens": num_answer_tokens(rollouts),
        }
        whole = _whole_ranking(rollouts) if grounding == "ranking" else {}
        if self._config.evaluation.searches:
            whole["mass"] = float(np.mean([_mass(rollout) for rollout in rollouts]))
        return dataclasses.replace(result, metrics={**result.metrics, **whole}, counts={**result.counts, **found})

    def _write_ranking(self, ranking: Ranking, stage: Stage) -> None:
        ranked = [[ranking.names[index] for index in row if index >= 0] for row in ranking.ranked_BK]
        write_json(stage.path / "grounded.json", ranked)

    def write_catalog(self, folder: Path) -> None:
        """The catalogue in SPRec's format, for ``jobs.score_predictions``."""
        write_json(folder / "id2name.json", {str(index): title for index, title in enumerate(self._catalog.titles)})
        write_json(folder / "name2genre.json", self._catalog.genres)
        write_json(folder / "genre_dict.json", dict.fromkeys(self._task.kept_genres, 0))
        write_json(folder / "popularity.json", self._popularity)

    def baselines(self) -> list[EvalResult]:
        """What the same rows give to three rules that learn nothing: a trainer that cannot beat them must say so.

        The most popular titles, what followed the history's last title in training, and random titles.
        """
        places = max(self._task.ks)
        titles = self._catalog.titles
        popular = sorted(titles, key=lambda title: -self._popularity[title])[:places]
        rng = derive_rng(self._config.seed, "random baseline")
        drawn = [[titles[index] for index in rng.permutation(len(titles))[:places]] for _ in self.rows]
        followed_BI = last_item_scores(self._train, titles, [example.history for example in self.rows])
        return [
            evaluate_predictions("popularity", None, self._task, ranked_titles=[popular] * len(self.rows)),
            evaluate_ranking("last_item", self._ranking_of(followed_BI), self._task),
            evaluate_predictions("random", None, self._task, ranked_titles=drawn),
        ]

    def title_embedder(self) -> Embedder:
        """What says how much two titles are alike.

        The sentence model where policies are grounded with one, else the language model without an adapter.
        """
        if self._config.evaluation.grounding == "sentence":
            return sentence_embedder(self._config.evaluation.sentence_model)
        return self._policy_embedder("titles", None)

    def _policy_embedder(self, label: str, policy: AdapterCheckpoint | None) -> Embedder:
        def embed(texts: Sequence[str]) -> npt.NDArray[np.float32]:
            read = ReadPolicy.of(self._config.model, self._model_path(), policy)
            task = EmbedTask(policy=read, texts=tuple(texts))
            vectors: npt.NDArray[np.float32] = self.reads(task, f"{label}: embedding")["vectors"]
            return vectors

        return embed


def _generated(rollouts: Sequence[Rollout]) -> list[str]:
    """The first answer to every row."""
    return [rollout.hypotheses[0].text for rollout in rollouts]


def num_answer_tokens(rollouts: Sequence[Rollout]) -> int:
    """The tokens of all answers together."""
    return sum(hypothesis.num_tokens for rollout in rollouts for hypothesis in rollout.hypotheses)


def _titles(rollout: Rollout) -> list[str]:
    """The titles that a rollout names, best first; titles of the same tokens one after the other."""
    named = ((parse_response(hypothesis.text), *hypothesis.same_tokens) for hypothesis in rollout.hypotheses)
    return [title for titles in named for title in titles if title is not None]


def _whole_ranking(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Mean reciprocal rank and mean log-probability (nats) of the targets over the whole catalogue.

    A target that is not in the catalogue has no rank: it counts 0 in the first and not at all in the second.
    """
    logps = [rollout.target_logp for rollout in rollouts if rollout.target_logp is not None]
    reciprocal = [0.0 if rollout.target_rank is None else 1 / (1 + rollout.target_rank) for rollout in rollouts]
    return {"mrr": float(np.mean(reciprocal)), "target_logp": float(np.mean(logps)) if logps else float("nan")}


def _mass(rollout: Rollout) -> float:
    """The probability of a rollout's answers together."""
    return sum(math.exp(hypothesis.logp) for hypothesis in rollout.hypotheses)
