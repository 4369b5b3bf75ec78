"""All METRICS of ranked recommendations, and what their denominators are.

Dimensions as in places.py.

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
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from sprec_ray.metrics.accuracy import hr_se, row_gains, row_hits
from sprec_ray.metrics.content import ild, token_bias
from sprec_ray.metrics.diversity import div_ratio, or_ratio
from sprec_ray.metrics.exposure import HEAD, MID, TAIL, coverage, entropy, gini, group_share, recommended_popularity
from sprec_ray.metrics.genres import dgu, genre_shares, mgu
from sprec_ray.metrics.kinds import CountMetric, GenreCounting, Metric, Recommendations, RowMetric, of_catalog, of_items
from sprec_ray.metrics.places import Floats, PlaceCounts, divide

logger = logging.getLogger(__name__)

Rows = Literal["all", "published"]


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
        return given.once(("history", counting), lambda: genre_shares(given.history_H, weights_IG))

    def value(given: Recommendations, k: int) -> float:
        weights_IG = given.weights_IG.get(counting)
        if weights_IG is None:
            return float("nan")
        shares_G = given.once((counting, k), lambda: genre_shares(given.ranked_BK[:, :k].ravel(), weights_IG))
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
    "div_ratio": CountMetric(lambda _, counts: div_ratio(counts)),
    "or_ratio": CountMetric(lambda _, counts: or_ratio(counts)),
}
GENRE_METRICS: dict[str, Metric] = {
    "mgu": _of_genres(mgu, "split"),
    "dgu": _of_genres(dgu, "split"),
    "mgu_whole": _of_genres(mgu, "whole"),
    "dgu_whole": _of_genres(dgu, "whole"),
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
