"""Accuracy, diversity and fairness of ranked recommendations, as functions of integer arrays, and all METRICS.

Dimensions as in places.py; ``G`` are the kept genres here.

``ranked_BK`` holds catalogue indices, best first. ``-1`` is an empty place: it recommends nothing, and ``k * n`` still
counts it. An index of ``I`` or more is a recommended title outside the catalogue: it is distinct, it can be
over-recommended, it is never a hit and has no genre. ``targets_B`` holds -1 where the target is not in the catalogue.

Denominators: here n is all rows for every metric. The published code of arXiv 2412.09243 takes all rows for HR and
NDCG, but drops the rows with an unknown target from DivRatio, ORRatio and the recommended genres;
``rows="published"`` does the same. The metrics of exposure.py and content.py, which that code does not have, leave
empty places and titles outside the catalogue out.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from sprec_ray.evaluation.content import ild, token_bias
from sprec_ray.evaluation.exposure import HEAD, MID, TAIL, coverage, entropy, gini, group_share, recommended_popularity
from sprec_ray.evaluation.metric_types import (
    CountMetric,
    GenreCounting,
    Metric,
    Recommendations,
    RowMetric,
    of_catalog,
    of_items,
)
from sprec_ray.evaluation.places import Floats, Ints, PlaceCounts, check_places, divide, place_counts

logger = logging.getLogger(__name__)

Rows = Literal["all", "published"]

NUM_OVER_RECOMMENDED = 3
"""ORRatio looks at the three most recommended items."""


def hr(ranked_BK: Ints, targets_B: Ints, *, k: int) -> float:
    """HR@k: the share of all rows whose target is among the first k; rows with an unknown target are misses."""
    return _mean(row_hits(ranked_BK, targets_B, k=k), "hr")


def hr_se(ranked_BK: Ints, targets_B: Ints, *, k: int) -> float:
    """Binomial standard error of HR@k, ``sqrt(p (1 - p) / n)``; 0 where every row hits or every row misses."""
    share = hr(ranked_BK, targets_B, k=k)
    return float(np.sqrt(share * (1 - share) / len(ranked_BK))) if len(ranked_BK) else float("nan")


def ndcg(ranked_BK: Ints, targets_B: Ints, *, k: int) -> float:
    """NDCG@k for a single relevant item: ``1 / log2(rank + 2)`` with rank from 0, averaged over all rows."""
    return _mean(row_gains(ranked_BK, targets_B, k=k), "ndcg")


def row_hits(ranked_BK: Ints, targets_B: Ints, *, k: int) -> Floats:
    """1 where the target is among the first k, else 0, [B]; their mean is HR@k."""
    return (_target_ranks(ranked_BK, targets_B, k) < k).astype(np.float64)


def row_gains(ranked_BK: Ints, targets_B: Ints, *, k: int) -> Floats:
    """Every row's NDCG at k, [B]."""
    rank_B = _target_ranks(ranked_BK, targets_B, k)
    return np.where(rank_B < k, 1 / np.log2(rank_B + 2.0), 0.0)


def div_ratio(ranked_BK: Ints, *, k: int) -> float:
    """DivRatio@k: distinct recommended items over ``k * n``."""
    return _ratio(len(place_counts(ranked_BK, k=k).titles_D), k * len(ranked_BK), "div_ratio")


def or_ratio(ranked_BK: Ints, *, k: int) -> float:
    """ORRatio@k: occurrences of the three most recommended items over ``k * n``."""
    return _ratio(int(_most_frequent(place_counts(ranked_BK, k=k))[0]), k * len(ranked_BK), "or_ratio")


def mgu(ranked_BK: Ints, history_H: Ints, weights_IG: Floats, *, k: int) -> float:
    """MGU@k: mean over the kept genres of ``|GP - GH|``; NaN when either distribution is empty."""
    return float(_mean_gap(genre_gaps(ranked_BK, history_H, weights_IG, k=k)))


def dgu(ranked_BK: Ints, history_H: Ints, weights_IG: Floats, *, k: int) -> float:
    """DGU@k: the largest less the smallest ``GP - GH`` of the kept genres; NaN when either distribution is empty."""
    return float(_range_of_gaps(genre_gaps(ranked_BK, history_H, weights_IG, k=k)))


def genre_gaps(ranked_BK: Ints, history_H: Ints, weights_IG: Floats, *, k: int) -> Floats:
    """GP - GH per kept genre, [G]: the genres' shares of the first k places less their shares of the histories.

    Items without a kept genre, and titles outside the catalogue, add nothing to either side.
    """
    check_places(ranked_BK, k)
    recommended_G = _genre_shares(ranked_BK[:, :k].ravel(), weights_IG)
    return recommended_G - _genre_shares(history_H, weights_IG)


def genre_weights(item_genres: Sequence[Sequence[str]], kept: Sequence[str], *, counting: GenreCounting) -> Floats:
    """What each item adds to each kept genre, [I, G].

    An item with g kept genres adds 1/g to each of them (``split``, SPRec) or 1 (``whole``, IFairLRS).
    """
    column = {genre: index for index, genre in enumerate(kept)}
    cells = [(row, column[genre]) for row, genres in enumerate(item_genres) for genre in genres if genre in column]
    weights_IG = np.zeros((len(item_genres), len(kept)))
    weights_IG[tuple(np.array(cells, dtype=np.int64).reshape(-1, 2).T)] = 1.0
    return weights_IG if counting == "whole" else weights_IG / np.maximum(weights_IG.sum(axis=1, keepdims=True), 1)


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
    found = place_counts(ranked_BK, k=k)
    order = np.argsort(-found.counts_RD[0], kind="stable")
    return list(zip(found.titles_D[order].tolist(), found.counts_RD[0][order].tolist(), strict=True))


def _most_frequent(counts: PlaceCounts) -> Ints:
    """In how many places the three most recommended titles are, together, [R]."""
    top = max(0, counts.counts_RD.shape[1] - NUM_OVER_RECOMMENDED)
    return np.asarray(np.sort(counts.counts_RD, axis=1)[:, top:].sum(axis=1))


def _mean_gap(gaps_G: Floats) -> Floats:
    """Over the last axis; NaN without genres."""
    return np.asarray(np.abs(gaps_G).mean(axis=-1)) if gaps_G.shape[-1] else np.full(gaps_G.shape[:-1], np.nan)


def _range_of_gaps(gaps_G: Floats) -> Floats:
    """Over the last axis; NaN without genres."""
    return np.asarray(np.ptp(gaps_G, axis=-1)) if gaps_G.shape[-1] else np.full(gaps_G.shape[:-1], np.nan)


def _of_genres(of_gaps: Callable[[Floats], Floats], counting: GenreCounting) -> CountMetric:
    """A metric of GP - GH; NaN without genres."""

    def values(given: Recommendations, counts: PlaceCounts) -> Floats:
        weights_IG = given.weights_IG.get(counting)
        if weights_IG is None or not weights_IG.size:
            return np.full(len(counts.counts_RD), np.nan)
        inside = counts.in_catalog(len(weights_IG))
        totals_RG = inside.counts_RD @ weights_IG[inside.titles_D]
        shares_RG = divide(totals_RG, totals_RG.sum(axis=1, keepdims=True))
        return of_gaps(shares_RG - history_shares(given, weights_IG))

    def history_shares(given: Recommendations, weights_IG: Floats) -> Floats:
        return given.once(("history", counting), lambda: _genre_shares(given.history_H, weights_IG))

    def value(given: Recommendations, k: int) -> float:
        weights_IG = given.weights_IG.get(counting)
        if weights_IG is None:
            return float("nan")
        shares_G = given.once((counting, k), lambda: _genre_shares(given.ranked_BK[:, :k].ravel(), weights_IG))
        return float(of_gaps(shares_G - history_shares(given, weights_IG)))

    return CountMetric(values, value)


def _of_group(group: int) -> RowMetric:
    """The share of a popularity group."""
    return of_items(
        lambda ranked_BK, catalog, k: (
            None if catalog.groups_I is None else group_share(ranked_BK, catalog.groups_I, group, k=k)
        )
    )


def _popularity() -> RowMetric:
    return of_items(
        lambda ranked_BK, catalog, k: (
            None if catalog.popularity_I is None else recommended_popularity(ranked_BK, catalog.popularity_I, k=k)
        )
    )


ACCURACY_METRICS: dict[str, Metric] = {
    "hr": RowMetric(lambda given, k: row_hits(given.ranked_BK, given.targets_B, k=k)),
    "hr_se": lambda given, k: hr_se(given.ranked_BK, given.targets_B, k=k),
    "ndcg": RowMetric(lambda given, k: row_gains(given.ranked_BK, given.targets_B, k=k)),
}
DIVERSITY_METRICS: dict[str, Metric] = {
    "div_ratio": CountMetric(lambda _, counts: divide(np.count_nonzero(counts.counts_RD, axis=1), counts.num_places)),
    "or_ratio": CountMetric(lambda _, counts: divide(_most_frequent(counts), counts.num_places)),
}
GENRE_METRICS: dict[str, Metric] = {
    "mgu": _of_genres(_mean_gap, "split"),
    "dgu": _of_genres(_range_of_gaps, "split"),
    "mgu_whole": _of_genres(_mean_gap, "whole"),
    "dgu_whole": _of_genres(_range_of_gaps, "whole"),
}
EXPOSURE_METRICS: dict[str, Metric] = {
    "gini": of_catalog(lambda counts, catalog, _: gini(counts, num_items=catalog.num_items)),
    "entropy": of_catalog(lambda counts, catalog, _: entropy(counts, num_items=catalog.num_items)),
    "coverage": of_catalog(lambda counts, catalog, _: coverage(counts, num_items=catalog.num_items)),
    "head_share": _of_group(HEAD),
    "mid_share": _of_group(MID),
    "tail_share": _of_group(TAIL),
    "arp": _popularity(),
}
CONTENT_METRICS: dict[str, Metric] = {
    "ild": of_items(lambda ranked_BK, catalog, k: ild(ranked_BK, catalog.genres_IW, k=k)),
    "token_bias": of_catalog(lambda counts, catalog, history_H: token_bias(counts, history_H, catalog.words_I2)),
}
METRICS = ACCURACY_METRICS | DIVERSITY_METRICS | GENRE_METRICS | EXPOSURE_METRICS | CONTENT_METRICS


def compute_metrics(given: Recommendations, ks: Sequence[int], *, rows: Rows = "all") -> dict[str, float]:
    """Every metric at every k, as ``{"hr@1": ..., "mgu_whole@5": ...}``; undefined ones are NaN, with one warning.

    Without genres MGU, DGU and ILD are undefined, without training events the popularity groups and ARP. ILD needs two
    places and is left out at k = 1. ``rows`` is the denominator of DivRatio, ORRatio and the genre metrics (see the
    module's docstring).
    """
    if not ks or min(ks) < 1:
        raise ValueError(f"k={list(ks)} must name at least one place, each 1 or more; for example k=1,5")
    published = {*DIVERSITY_METRICS, *GENRE_METRICS} if rows == "published" else set()
    counted = given.known if published else given
    results = {
        f"{name}@{k}": metric(counted if name in published else given, k)
        for k in ks
        for name, metric in METRICS.items()
        if (name, k) != ("ild", 1)
    }
    undefined = [name for name, value in results.items() if np.isnan(value)]
    if undefined:
        logger.warning(
            "undefined, reported as NaN: %s (no rows, no recommendation from the catalogue, no genres, or no training "
            "events)",
            ", ".join(undefined),
        )
    return results


def _target_ranks(ranked_BK: Ints, targets_B: Ints, k: int) -> Ints:
    """The first place of each target, [B], from 0; k when it is not among the first k or unknown."""
    check_places(ranked_BK, k)
    hit_BK = (ranked_BK[:, :k] == targets_B[:, None]) & (targets_B[:, None] >= 0)
    return np.where(hit_BK.any(axis=1), hit_BK.argmax(axis=1), k)


def _genre_shares(indices: Ints, weights_IG: Floats) -> Floats:
    counts_I = np.bincount(indices[(indices >= 0) & (indices < len(weights_IG))], minlength=len(weights_IG))
    totals_G = counts_I @ weights_IG
    if not totals_G.sum():
        return np.full(weights_IG.shape[1], np.nan)
    return np.asarray(totals_G / totals_G.sum())


def _mean(values_B: Floats, name: str) -> float:
    return _ratio(float(values_B.sum()), len(values_B), name)


def _ratio(count: float, total: int, name: str) -> float:
    if not total:
        logger.warning("%s of no rows is undefined: NaN", name)
        return float("nan")
    return count / total
