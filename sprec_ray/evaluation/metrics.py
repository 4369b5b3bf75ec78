"""Accuracy, diversity and fairness of ranked recommendations, as functions of integer arrays.

Dimensions: ``B`` test rows, ``K`` ranked places, ``I`` catalogue items, ``G`` kept genres, ``H`` history events.

``ranked_BK`` holds catalogue indices, best first. ``-1`` is an empty place: it recommends nothing, and ``k * n`` still
counts it. An index of ``I`` or more is a recommended title outside the catalogue: it is distinct, it can be
over-recommended, it is never a hit and has no genre. ``targets_B`` holds -1 where the target is not in the catalogue.

Denominators: here n is all rows for every metric. The published code of arXiv 2412.09243 takes all rows for HR and
NDCG, but drops the rows with an unknown target from DivRatio, ORRatio and the recommended genres;
``rows="published"`` does the same.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
GenreCounting = Literal["split", "whole"]
Rows = Literal["all", "published"]

NUM_OVER_RECOMMENDED = 3
"""ORRatio looks at the three most recommended items."""


def hr(ranked_BK: Ints, targets_B: Ints, *, k: int) -> float:
    """HR@k: the share of all rows whose target is among the first k; rows with an unknown target are misses."""
    return _mean((_target_ranks(ranked_BK, targets_B, k) < k).astype(np.float64), "hr")


def hr_se(ranked_BK: Ints, targets_B: Ints, *, k: int) -> float:
    """Binomial standard error of HR@k, ``sqrt(p (1 - p) / n)``; 0 where every row hits or every row misses."""
    share = hr(ranked_BK, targets_B, k=k)
    return float(np.sqrt(share * (1 - share) / len(ranked_BK))) if len(ranked_BK) else float("nan")


def ndcg(ranked_BK: Ints, targets_B: Ints, *, k: int) -> float:
    """NDCG@k for a single relevant item: ``1 / log2(rank + 2)`` with rank from 0, averaged over all rows."""
    rank_B = _target_ranks(ranked_BK, targets_B, k)
    return _mean(np.where(rank_B < k, 1 / np.log2(rank_B + 2.0), 0.0), "ndcg")


def div_ratio(ranked_BK: Ints, *, k: int) -> float:
    """DivRatio@k: distinct recommended items over ``k * n``."""
    return _ratio(len(recommendation_counts(ranked_BK, k=k)), k * len(ranked_BK), "div_ratio")


def or_ratio(ranked_BK: Ints, *, k: int) -> float:
    """ORRatio@k: occurrences of the three most recommended items over ``k * n``."""
    counts = [count for _, count in recommendation_counts(ranked_BK, k=k)[:NUM_OVER_RECOMMENDED]]
    return _ratio(sum(counts), k * len(ranked_BK), "or_ratio")


def mgu(ranked_BK: Ints, history_H: Ints, weights_IG: Floats, *, k: int) -> float:
    """MGU@k: mean over the kept genres of ``|GP - GH|``; NaN when either distribution is empty."""
    gaps_G = genre_gaps(ranked_BK, history_H, weights_IG, k=k)
    return float(np.abs(gaps_G).mean()) if len(gaps_G) else float("nan")


def dgu(ranked_BK: Ints, history_H: Ints, weights_IG: Floats, *, k: int) -> float:
    """DGU@k: the largest less the smallest ``GP - GH`` of the kept genres; NaN when either distribution is empty."""
    gaps_G = genre_gaps(ranked_BK, history_H, weights_IG, k=k)
    return float(gaps_G.max() - gaps_G.min()) if len(gaps_G) else float("nan")


def genre_gaps(ranked_BK: Ints, history_H: Ints, weights_IG: Floats, *, k: int) -> Floats:
    """GP - GH per kept genre, [G]: the genres' shares of the first k places less their shares of the histories.

    Items without a kept genre, and titles outside the catalogue, add nothing to either side.
    """
    _check_places(ranked_BK, k)
    recommended_G = _genre_shares(ranked_BK[:, :k].ravel(), weights_IG)
    return recommended_G - _genre_shares(history_H, weights_IG)


def genre_weights(item_genres: Sequence[Sequence[str]], kept: Sequence[str], *, counting: GenreCounting) -> Floats:
    """What each item adds to each kept genre, [I, G].

    An item with g kept genres adds 1/g to each of them (``split``, SPRec) or 1 (``whole``, IFairLRS).
    """
    column = {genre: index for index, genre in enumerate(kept)}
    weights_IG = np.zeros((len(item_genres), len(kept)))
    for row, genres in enumerate(item_genres):
        columns = sorted({column[genre] for genre in genres if genre in column})
        if columns:
            weights_IG[row, columns] = 1 / len(columns) if counting == "split" else 1.0
    return weights_IG


def kept_genres(popularity: Mapping[str, int], genres: Mapping[str, Sequence[str]], *, num: int) -> tuple[str, ...]:
    """The ``num`` genres with most training events, none of them a parent of another; ties go by name.

    Genre A is a parent of B when every catalogue item of B also has A and A has more items. Of a parent and its child
    among the chosen, the parent goes (it says less: all CDs are "CDs & Vinyl") and the next genre moves up.

    Args:
        popularity: number of training events per title; titles that are absent have none.
        genres: the genres of every catalogue title.
        num: how many to keep; fewer come back when the catalogue has fewer.
    """
    events: Counter[str] = Counter()
    items: dict[str, set[str]] = {}
    for title, names in genres.items():
        for name in set(names):
            events[name] += popularity.get(title, 0)
            items.setdefault(name, set()).add(title)
    waiting = sorted(items, key=lambda name: (-events[name], name))
    while True:
        chosen = waiting[:num]
        parents = {a for a in chosen for b in chosen if items[b] < items[a]}
        if not parents:
            return tuple(chosen)
        waiting = [name for name in waiting if name not in parents]


def recommendation_counts(ranked_BK: Ints, *, k: int) -> list[tuple[int, int]]:
    """(index, number of occurrences) of everything in the first k places, most frequent first, ties by index."""
    _check_places(ranked_BK, k)
    places = ranked_BK[:, :k].ravel()
    values, counts = np.unique(places[places >= 0], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(int(values[i]), int(counts[i])) for i in order]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendations:
    """What the metrics read. ``weights_IG`` is one table per genre counting, empty without genres."""

    ranked_BK: Ints
    targets_B: Ints
    history_H: Ints
    weights_IG: Mapping[GenreCounting, Floats]

    @property
    def known(self) -> Recommendations:
        """The rows whose target is in the catalogue; the histories stay whole, as in the published code."""
        rows = self.targets_B >= 0
        return replace(self, ranked_BK=self.ranked_BK[rows], targets_B=self.targets_B[rows])


Metric = Callable[[Recommendations, int], float]

ACCURACY_METRICS: dict[str, Metric] = {
    "hr": lambda given, k: hr(given.ranked_BK, given.targets_B, k=k),
    "hr_se": lambda given, k: hr_se(given.ranked_BK, given.targets_B, k=k),
    "ndcg": lambda given, k: ndcg(given.ranked_BK, given.targets_B, k=k),
}
DIVERSITY_METRICS: dict[str, Metric] = {
    "div_ratio": lambda given, k: div_ratio(given.ranked_BK, k=k),
    "or_ratio": lambda given, k: or_ratio(given.ranked_BK, k=k),
}
GENRE_METRICS: dict[str, Metric] = {
    "mgu": lambda given, k: mgu(given.ranked_BK, given.history_H, given.weights_IG["split"], k=k),
    "dgu": lambda given, k: dgu(given.ranked_BK, given.history_H, given.weights_IG["split"], k=k),
    "mgu_whole": lambda given, k: mgu(given.ranked_BK, given.history_H, given.weights_IG["whole"], k=k),
    "dgu_whole": lambda given, k: dgu(given.ranked_BK, given.history_H, given.weights_IG["whole"], k=k),
}
METRICS = ACCURACY_METRICS | DIVERSITY_METRICS | GENRE_METRICS


def compute_metrics(given: Recommendations, ks: Sequence[int], *, rows: Rows = "all") -> dict[str, float]:
    """Every metric at every k, as ``{"hr@1": ..., "mgu_whole@5": ...}``; without genres, no genre metrics.

    ``rows`` is the denominator of everything but HR and NDCG (see the module's docstring).
    """
    if not ks or min(ks) < 1:
        raise ValueError(f"k={list(ks)} must name at least one place, each 1 or more; for example k=1,5")
    results: dict[str, float] = {}
    counted = given.known if rows == "published" else given
    for k in ks:
        for name, metric in METRICS.items():
            if name not in GENRE_METRICS or given.weights_IG:
                results[f"{name}@{k}"] = metric(given if name in ACCURACY_METRICS else counted, k)
    undefined = [name for name, value in results.items() if np.isnan(value)]
    if undefined:
        logger.warning("undefined, reported as NaN: %s (no rows, or no kept genre on one side)", ", ".join(undefined))
    return results


def _target_ranks(ranked_BK: Ints, targets_B: Ints, k: int) -> Ints:
    """The first place of each target, [B], from 0; k when it is not among the first k or unknown."""
    _check_places(ranked_BK, k)
    hit_BK = (ranked_BK[:, :k] == targets_B[:, None]) & (targets_B[:, None] >= 0)
    return np.where(hit_BK.any(axis=1), hit_BK.argmax(axis=1), k)


def _genre_shares(indices: Ints, weights_IG: Floats) -> Floats:
    counts_I = np.bincount(indices[(indices >= 0) & (indices < len(weights_IG))], minlength=len(weights_IG))
    totals_G = counts_I @ weights_IG
    if not totals_G.sum():
        return np.full(weights_IG.shape[1], np.nan)
    return np.asarray(totals_G / totals_G.sum())


def _check_places(ranked_BK: Ints, k: int) -> None:
    if ranked_BK.ndim != 2 or ranked_BK.shape[1] < k:
        raise ValueError(f"k={k} needs ranked_BK of shape [B, {k}] or wider, got {ranked_BK.shape}; pad with -1")


def _mean(values_B: Floats, name: str) -> float:
    return _ratio(float(values_B.sum()), len(values_B), name)


def _ratio(count: float, total: int, name: str) -> float:
    if not total:
        logger.warning("%s of no rows is undefined: NaN", name)
        return float("nan")
    return count / total
