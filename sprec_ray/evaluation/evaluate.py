"""Scores what a policy generated for the test rows: grounding, metrics, and the counts behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from sprec_ray.data.catalog import Catalog
from sprec_ray.data.prompts import parse_response
from sprec_ray.evaluation.grounding import Embedder, ground_texts, text_to_ground
from sprec_ray.metrics.compute import Rows, compute_metrics
from sprec_ray.metrics.content import genre_sets, word_counts
from sprec_ray.metrics.diversity import recommendation_counts
from sprec_ray.metrics.exposure import popularity_groups
from sprec_ray.metrics.genres import genre_gaps, genre_weights
from sprec_ray.metrics.kinds import CatalogTables, GenreCounting, Recommendations
from sprec_ray.metrics.places import Ints
from sprec_ray.types import EvalResult

NUM_TOP_ITEMS = 10


@dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """What every policy of a run is measured on."""

    targets: Sequence[str]
    """The next title of each test row."""
    histories: Sequence[Sequence[str]]
    """The history titles of each test row; with repeats, as the users met them."""
    catalog: Catalog
    kept_genres: tuple[str, ...] = ()
    """Without kept genres MGU and DGU are undefined."""
    popularity: Mapping[str, int] = field(default_factory=dict)
    """Training events per title; without any, the popularity groups and ARP are undefined."""
    ks: tuple[int, ...] = (1, 5)
    rows: Rows = "all"
    """``published`` drops rows with an unknown target where the published code does (see metrics/compute.py)."""

    @cached_property
    def unranked(self) -> Recommendations:
        """Everything that metrics read but the ranking; made once for all policies."""
        titles = self.catalog.titles
        history = [_index(self.catalog, title) for titles in self.histories for title in titles]
        history_H = np.array(history, dtype=np.int64)
        targets_B = np.array([_index(self.catalog, title) for title in self.targets], dtype=np.int64)
        item_genres = [self.catalog.genres.get(title, ()) for title in titles]
        countings: tuple[GenreCounting, ...] = ("split", "whole") if self.kept_genres else ()
        popularity_I = np.array([self.popularity.get(title, 0) for title in titles], dtype=np.int64)
        known = bool(popularity_I.any())
        return Recommendations(
            ranked_BK=np.full((len(targets_B), 0), -1, dtype=np.int64),
            targets_B=targets_B,
            history_H=history_H,
            weights_IG={
                counting: genre_weights(item_genres, self.kept_genres, counting=counting) for counting in countings
            },
            catalog=CatalogTables(
                num_items=len(titles),
                popularity_I=popularity_I if known else None,
                groups_I=popularity_groups(popularity_I) if known else None,
                genres_IW=genre_sets(titles, self.catalog.genres),
                words_I2=word_counts(titles, history_H),
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Ranked recommendations of every test row, as metrics/places.py has them."""

    ranked_BK: Ints
    names: Sequence[str]
    """The title of every index: the catalogue's, then those of recommendations outside it."""
    counts: Mapping[str, int]


def evaluate_predictions(
    label: str,
    generated: Sequence[str] | None,
    task: EvaluationTask,
    *,
    embed: Embedder | None = None,
    ranked_titles: Sequence[Sequence[str]] | None = None,
) -> EvalResult:
    """The metrics, counts, most recommended titles and genre gaps of one policy.

    Give exactly one of ``embed``, which grounds ``generated``, and ``ranked_titles``, one list of titles per row, best
    first. ``generated`` holds raw responses, or is None for a baseline that ranks items without generating text, which
    then has no ``valid`` share.

    Raises ValueError when the rows do not line up.
    """
    if (embed is None) == (ranked_titles is None):
        raise ValueError("pass either embed= to ground the generated texts, or ranked_titles=")
    for name, rows in (("histories", task.histories), ("generated", generated), ("ranked lists", ranked_titles)):
        if rows is not None and len(rows) != len(task.targets):
            raise ValueError(f"{len(rows)} {name} do not match {len(task.targets)} targets; both need one per test row")
    if ranked_titles is not None:
        ranking = rank_lists(ranked_titles, task)
    elif generated is not None and embed is not None:
        ranking = rank_by_embedding(generated, task, embed)
    else:
        raise ValueError("embed= grounds generated texts, and there are none")
    return evaluate_ranking(label, ranking, task, generated=generated)


def rank_by_embedding(generated: Sequence[str], task: EvaluationTask, embed: Embedder) -> Ranking:
    """Raw responses, grounded: the nearest catalogue titles of each (see grounding.py)."""
    texts = [text_to_ground(text) for text in generated]
    ranked_BK = ground_texts(texts, task.catalog, embed, k=max(task.ks))
    return Ranking(ranked_BK=ranked_BK, names=task.catalog.titles, counts={})


def rank_lists(ranked_titles: Sequence[Sequence[str]], task: EvaluationTask) -> Ranking:
    """Ready lists of titles, with what is odd about them counted.

    A title outside the catalogue is a recommendation that never hits and has no genre; a place beyond a list's end
    recommends nothing.
    """
    places, names = max(task.ks), list(task.catalog.titles)
    kept = [titles[:places] for titles in ranked_titles]
    foreign: dict[str, int] = {}
    ranked_BK = np.full((len(kept), places), -1, dtype=np.int64)
    for row, titles in enumerate(kept):
        for place, title in enumerate(titles):
            index = task.catalog.index_of(title)
            ranked_BK[row, place] = foreign.setdefault(title, len(names) + len(foreign)) if index is None else index
    counts = {
        "num_short_lists": sum(len(titles) < places for titles in kept),
        "num_lists_with_repeats": sum(len(set(titles)) < len(titles) for titles in kept),
        "num_grounded_unknown": int((ranked_BK >= len(names)).sum()),
    }
    return Ranking(ranked_BK=ranked_BK, names=[*names, *foreign], counts=counts)


def evaluate_ranking(
    label: str, ranking: Ranking, task: EvaluationTask, *, generated: Sequence[str] | None = None
) -> EvalResult:
    """``evaluate_predictions`` for recommendations that are ranked already."""
    given = recommendations(ranking.ranked_BK, task)
    metrics = compute_metrics(given, task.ks, rows=task.rows)
    counts = {"num_rows": len(task.targets)}
    if generated is not None:
        counts |= _count_generated(generated, task.catalog)
        metrics["valid"] = counts["num_valid"] / len(generated) if generated else float("nan")
    top = recommendation_counts(ranking.ranked_BK, k=1)[:NUM_TOP_ITEMS]
    return EvalResult(
        label=label,
        metrics=metrics,
        counts={**counts, **ranking.counts, **_count_rows(given, task)},
        top_items=tuple((ranking.names[index], count) for index, count in top),
        genre_gaps=_first_place_gaps(given, task),
    )


def recommendations(ranked_BK: Ints, task: EvaluationTask) -> Recommendations:
    """Ranked catalogue indices, joined with the task's targets, histories and genres as indices and weights."""
    return replace(task.unranked, ranked_BK=ranked_BK)


def _count_generated(generated: Sequence[str], catalog: Catalog) -> dict[str, int]:
    parsed = [parse_response(text) for text in generated]
    valid = [title for title in parsed if title is not None and title in catalog]
    return {
        "num_parse_failures": sum(title is None for title in parsed),
        "num_in_catalog": sum(text_to_ground(text) in catalog for text in generated),
        "num_valid": len(valid),
        # DivRatio also counts what invalid answers happen to be grounded to; this does not.
        "num_distinct_valid": len(set(valid)),
    }


def _count_rows(given: Recommendations, task: EvaluationTask) -> dict[str, int]:
    counts = {
        "num_unknown_targets": int((given.targets_B < 0).sum()),
        "num_history_items": len(given.history_H),
        "num_unknown_history_items": int((given.history_H < 0).sum()),
    }
    known = given.targets_B[:, None] >= 0
    for k in task.ks:
        hits_BK = (given.ranked_BK[:, :k] == given.targets_B[:, None]) & known
        counts[f"num_hits@{k}"] = int(hits_BK.any(axis=1).sum())
        counts[f"num_distinct@{k}"] = len(recommendation_counts(given.ranked_BK, k=k))
    return counts


def _first_place_gaps(given: Recommendations, task: EvaluationTask) -> dict[str, float]:
    if not task.kept_genres:
        return {}
    counted = given.known if task.rows == "published" else given
    gaps_G = genre_gaps(counted.ranked_BK, given.history_H, given.weights_IG["split"], k=1)
    return {genre: float(gap) for genre, gap in zip(task.kept_genres, gaps_G, strict=True)}


def _index(catalog: Catalog, title: str) -> int:
    index = catalog.index_of(title)
    return -1 if index is None else index
