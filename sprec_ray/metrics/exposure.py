"""How recommendations spread over the catalogue: concentration, coverage, and popular against rare items.

Gini, entropy and coverage look at how often each catalogue item is recommended in the first k places of all rows, and
give one value per choice of rows, [R]. Popularity groups and ARP are means over rows and give a value per row, [B].
Empty places and titles outside the catalogue are left out everywhere. Undefined is NaN.
"""

from __future__ import annotations

import numpy as np

from sprec_ray.metrics.places import Floats, Ints, PlaceCounts, divide, place_means

HEAD, MID, TAIL = 0, 1, 2


def gini(counts: PlaceCounts, *, num_items: int) -> Floats:
    """Gini index of the items' recommendation counts, items that are never recommended included.

    ``sum_i (2 i - I - 1) c_i / ((I - 1) sum_i c_i)`` with c ascending and i from 1: 0 when every item is recommended
    equally often, 1 when one item has every place. Shani and Gunawardana, Evaluating Recommendation Systems (2011),
    section 8.3.3. NaN without recommendations, and for a catalogue of one item.
    """
    inside = counts.in_catalog(num_items)
    sorted_RD = np.sort(inside.counts_RD, axis=1)
    # The items that are never recommended come first, and add nothing.
    rank_D = np.arange(num_items - sorted_RD.shape[1] + 1, num_items + 1)
    return divide(sorted_RD @ (2 * rank_D - num_items - 1), (num_items - 1) * sorted_RD.sum(axis=1))


def entropy(counts: PlaceCounts, *, num_items: int) -> Floats:
    """Shannon entropy of the items' shares of the recommendations, in nats: ``-sum_i p_i log p_i``.

    From 0 (one item) to log I; its exponential is the number of items that, recommended equally often, would be as
    diverse. Same source as ``gini``. NaN without recommendations.
    """
    counts_RD = counts.in_catalog(num_items).counts_RD
    totals_R = counts_RD.sum(axis=1)
    sizes = np.arange(counts_RD.max(initial=0) + 1)
    weighted = sizes * np.log(np.maximum(sizes, 1))
    # log N - sum c log c / N; rounding could leave a single item at -1e-16.
    entropies_R = np.log(np.maximum(totals_R, 1)) - divide(weighted[counts_RD].sum(axis=1), totals_R)
    return np.asarray(np.maximum(entropies_R, 0.0))


def coverage(counts: PlaceCounts, *, num_items: int) -> Floats:
    """Catalogue coverage: distinct recommended items over the number of items (Ge et al., RecSys 2010).

    Without a row it is NaN, and so it is for an empty catalogue.
    """
    distinct_R = np.count_nonzero(counts.in_catalog(num_items).counts_RD, axis=1)
    return divide(distinct_R, num_items if counts.num_places else 0)


def popularity_groups(popularity_I: Ints) -> Ints:
    """HEAD, MID or TAIL for each item, by its number of training events.

    As arXiv 2103.06364: the head are the most popular items that make up a fifth of the events, the tail the least
    popular ones that make up a fifth, mid the rest. Here an item is in the head when strictly more popular items have
    less than a fifth of the events, and in the tail when items that are at most as popular have a fifth at most. So
    items of equal popularity are in one group whatever their order, the most popular item is in the head, and items
    without events are in the tail. Without any event every item is in the tail.

    >>> popularity_groups(np.array([50, 20, 10, 10, 10, 0])).tolist()
    [0, 1, 1, 1, 1, 2]
    """
    total = int(popularity_I.sum())
    sizes, which_I = np.unique(popularity_I, return_inverse=True)
    events = sizes * np.bincount(which_I, minlength=len(sizes))
    at_most = np.cumsum(events)
    groups = np.full(len(sizes), MID)
    groups[5 * (total - at_most) < total] = HEAD
    groups[5 * at_most <= total] = TAIL
    return np.asarray(groups[which_I])


def group_share(ranked_BK: Ints, groups_I: Ints, group: int, *, k: int) -> Floats:
    """The share of a row's recommended items that are in a popularity group, [B].

    The group's share of a policy is the mean over rows, as in arXiv 1901.07555's average percentage of long-tail items.
    """
    return place_means((groups_I == group).astype(np.float64), ranked_BK, k=k)


def recommended_popularity(ranked_BK: Ints, popularity_I: Ints, *, k: int) -> Floats:
    """The mean number of training events of a row's recommended items, [B]; its mean is ARP (arXiv 1901.07555)."""
    return place_means(popularity_I, ranked_BK, k=k)
