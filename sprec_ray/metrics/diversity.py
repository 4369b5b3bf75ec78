"""How many titles are recommended, and how much a few of them are. Dimensions as in places.py."""

from __future__ import annotations

import numpy as np

from sprec_ray.metrics.places import Floats, Ints, PlaceCounts, divide, place_counts

NUM_OVER_RECOMMENDED = 3
"""ORRatio looks at the three most recommended items."""


def div_ratio(counts: PlaceCounts) -> Floats:
    """DivRatio@k, [R]: distinct recommended items over ``k * n``."""
    return divide(np.count_nonzero(counts.counts_RD, axis=1), counts.num_places)


def or_ratio(counts: PlaceCounts) -> Floats:
    """ORRatio@k, [R]: occurrences of the three most recommended items over ``k * n``."""
    top = max(0, counts.counts_RD.shape[1] - NUM_OVER_RECOMMENDED)
    return divide(np.sort(counts.counts_RD, axis=1)[:, top:].sum(axis=1), counts.num_places)


def recommendation_counts(ranked_BK: Ints, *, k: int) -> list[tuple[int, int]]:
    """(index, number of occurrences) of everything in the first k places, most frequent first, ties by index."""
    found = place_counts(ranked_BK, k=k)
    order = np.argsort(-found.counts_RD[0], kind="stable")
    return list(zip(found.titles_D[order].tolist(), found.counts_RD[0][order].tolist(), strict=True))
