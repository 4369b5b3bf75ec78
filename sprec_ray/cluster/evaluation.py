"""Measures a policy's answers to the test rows, with embeddings computed by the training workers."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sprec_ray.artifacts import Stage, write_json
from sprec_ray.cluster.worker import EmbedTask
from sprec_ray.config import RunConfig
from sprec_ray.data.catalog import Catalog
from sprec_ray.data.prompts import parse_response, render_prompt
from sprec_ray.data.sequences import derive_rng
from sprec_ray.evaluation.evaluate import (
    EvaluationTask,
    evaluate_predictions,
    evaluate_ranking,
    rank_by_embedding,
    rank_lists,
)
from sprec_ray.evaluation.grounding import Embedder, sentence_embedder
from sprec_ray.evaluation.metrics import kept_genres
from sprec_ray.types import AdapterCheckpoint, EvalResult, Example, Rollout

RunEmbedding = Callable[[EmbedTask, str], dict[str, Any]]
"""Runs an EmbedTask on the training workers under a label."""


class Evaluator:
    """The test rows, the catalogue and the way titles are embedded: the same for every policy of a run."""

    def __init__(
        self,
        config: RunConfig,
        *,
        catalog: Catalog,
        train: Sequence[Example],
        test: Sequence[Example],
        model_path: str,
        embed: RunEmbedding,
    ) -> None:
        self._config, self._catalog, self._test, self._model_path = config, catalog, test, model_path
        self.waited_s = 0.0
        """Seconds of the last ``evaluate`` in which the training workers were busy with something else."""
        self._run_embedding = embed
        # A window's history is the earlier part of the same sequence: targets alone count every event about once.
        self._popularity = Counter(example.target for example in train if example.target in catalog)
        self._task = EvaluationTask(
            targets=[example.target for example in test],
            histories=[example.history for example in test],
            catalog=catalog,
            kept_genres=kept_genres(self._popularity, catalog.genres, num=config.evaluation.num_genres),
            ks=config.evaluation.k,
        )

    def evaluate(
        self, label: str, policy: AdapterCheckpoint | None, rollouts: Sequence[Rollout], stage: Stage
    ) -> EvalResult:
        """Rank titles by the hypotheses of every row and measure them.

        ``predictions.json`` and ``grounded.json`` in the stage's folder, and the ``catalog`` folder beside it, are what
        ``jobs.score_predictions`` reads: it must give the same numbers.
        """
        self.waited_s = 0.0
        self._write_catalog(stage.path.parent / "catalog")
        generated = [rollout.hypotheses[0].text for rollout in rollouts]
        grounding = self._config.evaluation.grounding
        if grounding in {"search", "ranking"}:
            ranking = rank_lists([_titles(rollout) for rollout in rollouts], self._task)
        elif grounding == "sentence":
            embed = sentence_embedder(self._config.evaluation.sentence_model)
            ranking = rank_by_embedding(generated, self._task, embed)
        else:
            ranking = rank_by_embedding(generated, self._task, self._policy_embedder(label, policy))
        data = self._config.data
        write_json(
            stage.path / "predictions.json",
            [
                {
                    "input": render_prompt(example.history, template=data.template, noun=data.noun),
                    "output": f'"{example.target}"',
                    "predict": [text],
                }
                for example, text in zip(self._test, generated, strict=True)
            ],
        )
        ranked = [[ranking.names[index] for index in row if index >= 0] for row in ranking.ranked_BK]
        write_json(stage.path / "grounded.json", ranked)
        result = evaluate_ranking(label, ranking, self._task, generated=generated)
        found = {
            "num_inexact_rows": sum(bool(rollout.gap) for rollout in rollouts),
            "num_answer_tokens": num_answer_tokens(rollouts),
        }
        whole = _whole_ranking(rollouts) if grounding == "ranking" else {}
        if grounding in {"search", "ranking"}:
            whole["mass"] = float(np.mean([_mass(rollout) for rollout in rollouts]))
        return dataclasses.replace(result, metrics={**result.metrics, **whole}, counts={**result.counts, **found})

    def _write_catalog(self, folder: Path) -> None:
        """The catalogue in SPRec's format."""
        write_json(folder / "id2name.json", {str(index): title for index, title in enumerate(self._catalog.titles)})
        write_json(folder / "name2genre.json", self._catalog.genres)
        write_json(folder / "genre_dict.json", dict.fromkeys(self._task.kept_genres, 0))

    def baselines(self) -> list[EvalResult]:
        """What the same rows give to the most popular titles and to random ones: below these nothing was learned."""
        places = max(self._task.ks)
        titles = self._catalog.titles
        popular = sorted(titles, key=lambda title: -self._popularity[title])[:places]
        rng = derive_rng(self._config.seed, "random baseline")
        drawn = [[titles[index] for index in rng.permutation(len(titles))[:places]] for _ in self._test]
        return [
            evaluate_predictions("popularity", None, self._task, ranked_titles=[popular] * len(self._test)),
            evaluate_predictions("random", None, self._task, ranked_titles=drawn),
        ]

    def _policy_embedder(self, label: str, policy: AdapterCheckpoint | None) -> Embedder:
        def embed(texts: Sequence[str]) -> npt.NDArray[np.float32]:
            task = EmbedTask(
                model_path=self._model_path,
                dtype=self._config.model.dtype,
                trust_remote_code=self._config.model.trust_remote_code,
                adapter=policy.path if policy else None,
                lora=self._config.model.lora,
                texts=tuple(texts),
                quantization=self._config.model.quantization,
            )
            start = time.monotonic()
            summary = self._run_embedding(task, f"{label}: embedding")
            self.waited_s += max(0.0, time.monotonic() - start - summary["compute_s"])
            vectors: npt.NDArray[np.float32] = summary["vectors"]
            return vectors

        return embed


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
