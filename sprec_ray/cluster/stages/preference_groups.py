"""The preference groups of an iteration: which titles are rejected, by whichever way the configuration names."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sprec_ray.cluster.stages.run_data import RunData
from sprec_ray.config.run import RunConfig
from sprec_ray.data.prompts import parse_response
from sprec_ray.data.sequences import derive_rng
from sprec_ray.evaluation.grounding import Embedder, ground_texts
from sprec_ray.recommenders.recommender import Recommender
from sprec_ray.selfplay.candidate_negatives import candidate_groups
from sprec_ray.selfplay.negatives import drawn_groups, mix_random, self_play_groups, similar_groups, smoothing_of
from sprec_ray.types import Example, PreferenceGroup, Rollout

logger = logging.getLogger(__name__)


def needs_rollouts(config: RunConfig) -> bool:
    """Whether the rejected titles are the policy's own answers; not when all of them are replaced by random ones."""
    return config.selfplay.asks_the_policy and config.selfplay.random_ratio < 1


class PreferenceGroups:
    """Makes preference groups of examples; ``embed`` and ``recommender`` are asked only where they are needed."""

    def __init__(
        self,
        config: RunConfig,
        data: RunData,
        *,
        embed: Callable[[], Embedder],
        recommender: Callable[[], Recommender],
    ) -> None:
        self._config, self._data, self._embed, self._recommender = config, data, embed, recommender

    def make(
        self, iteration: int, examples: Sequence[Example], rollouts: Mapping[str, Rollout]
    ) -> tuple[list[PreferenceGroup], dict[str, int]]:
        """The groups, and the counts of what was dropped. Raises ValueError when nothing is left."""
        groups, counts = self._reject(iteration, examples, rollouts)
        if counts.get("top_equal_to_target", 0) > 0.5 * len(examples):
            logger.warning("iteration %d: more than half of the policy's first answers are the targets", iteration)
        if not groups:
            raise ValueError(
                f"iteration {iteration}: none of the {counts.get('beams', 0)} beams was a usable negative "
                f"({counts.get('invalid', 0)} invalid); the policy has collapsed: lower preference.learning_rate"
            )
        if self._config.preference.oracle:
            groups = self._smoothed(groups)
        return groups, counts

    def _reject(
        self, iteration: int, examples: Sequence[Example], rollouts: Mapping[str, Rollout]
    ) -> tuple[list[PreferenceGroup], dict[str, int]]:
        selfplay, titles = self._config.selfplay, self._data.catalog.titles
        rng = derive_rng(self._config.seed, f"negatives/{iteration}")
        if selfplay.negatives == "similar":
            return similar_groups(examples, self._neighbours(examples), num_negatives=selfplay.num_negatives), {}
        all_random = selfplay.negatives == "random" or selfplay.random_ratio == 1
        if all_random and self._config.data.task == "candidates":
            seed, count = self._config.seed, selfplay.num_negatives
            return candidate_groups(examples, num_negatives=count, seed=seed, iteration=iteration), {}
        if not needs_rollouts(self._config):
            shares = None
            if selfplay.negatives == "popular":
                popularity = self._data.popularity
                shares = np.array([popularity[title] for title in titles]) / popularity.total()
            return (
                drawn_groups(examples, num_negatives=selfplay.num_negatives, titles=titles, rng=rng, shares=shares),
                {},
            )
        groups, counts = self_play_groups(
            examples,
            rollouts,
            num_negatives=selfplay.num_negatives,
            parse=parse_response,
            titles=frozenset(titles),
            exclude_history=selfplay.exclude_history,
        )
        counts["inexact"] = sum(bool(rollout.gap) for rollout in rollouts.values())
        return mix_random(groups, ratio=selfplay.random_ratio, titles=titles, rng=rng), counts

    def _neighbours(self, examples: Sequence[Example]) -> dict[str, list[str]]:
        """For every target the titles most like it, best first; itself may be among them."""
        targets = list(dict.fromkeys(example.target for example in examples))
        catalog = self._data.catalog
        # One more than is asked for: a target's nearest title is itself.
        k = min(self._config.selfplay.num_negatives + 1, len(catalog))
        nearest_BK = ground_texts(targets, catalog, self._embed(), k=k)
        return {
            target: [catalog.titles[place] for place in places]
            for target, places in zip(targets, nearest_BK.tolist(), strict=True)
        }

    def _smoothed(self, groups: Sequence[PreferenceGroup]) -> list[PreferenceGroup]:
        catalog = self._data.catalog
        smoothed = []
        for first in range(0, len(groups), 1024):  # a row of scores is as long as the catalogue
            some = groups[first : first + 1024]
            scores_BI = self._recommender().scores([group.history for group in some])
            smoothed += [
                dataclasses.replace(group, smoothing=smoothing_of(group, scores_I, catalog.index_of))
                for group, scores_I in zip(some, scores_BI, strict=True)
            ]
        return smoothed
