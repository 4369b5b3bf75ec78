"""Concentration, coverage and popularity groups: hand-worked values, a naive second implementation, invariances."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprec_ray.metrics.exposure import (
    HEAD,
    MID,
    TAIL,
    coverage,
    entropy,
    gini,
    group_share,
    popularity_groups,
    recommended_popularity,
)
from sprec_ray.metrics.places import PlaceCounts, place_counts

NUM_ITEMS = 5
SPREAD = {"gini": gini, "entropy": entropy, "coverage": coverage}


def spread(ranked, k=None, num_items=NUM_ITEMS):
    counts = place_counts(ranked, k=k or ranked.shape[1])
    return {name: float(metric(counts, num_items=num_items)[0]) for name, metric in SPREAD.items()}


def test_spread_by_hand():
    """Four rows, k = 2: item 0 four times, 1 twice, 2 once, a title outside the catalogue once; items 3, 4 never.

    Gini: c = (0, 0, 1, 2, 4), weights 2i - 6 = (-4, -2, 0, 2, 4): (0 + 4 + 16) / (4 * 7) = 20/28.
    Entropy of (4, 2, 1)/7. Coverage 3/5.
    """
    found = spread(np.array([[0, 1], [0, 1], [0, 2], [0, 9]]))
    assert found["gini"] == pytest.approx(20 / 28)
    assert found["entropy"] == pytest.approx(-sum(p * math.log(p) for p in (4 / 7, 2 / 7, 1 / 7)))
    assert found["coverage"] == 3 / 5


def test_the_ends_of_the_scales():
    everything_once = np.arange(NUM_ITEMS)[:, None]
    equal = pytest.approx({"gini": 0, "entropy": math.log(NUM_ITEMS), "coverage": 1})
    assert spread(everything_once) == equal
    assert spread(np.zeros((7, 1), dtype=np.int64)) == pytest.approx({"gini": 1, "entropy": 0, "coverage": 1 / 5})


def test_spread_without_a_recommendation_of_the_catalogue_is_undefined_but_for_coverage():
    found = spread(np.array([[-1, NUM_ITEMS], [-1, -1]]))
    assert math.isnan(found["gini"])
    assert math.isnan(found["entropy"])
    assert found["coverage"] == 0
    assert all(math.isnan(value) for value in spread(np.zeros((0, 2), dtype=np.int64)).values())
    assert math.isnan(spread(np.zeros((3, 1), dtype=np.int64), num_items=1)["gini"])


def test_several_choices_of_rows_at_once():
    counts = PlaceCounts(titles_D=np.array([0, 3]), counts_RD=np.array([[4, 0], [2, 2]]), num_places=4)
    np.testing.assert_allclose(entropy(counts, num_items=NUM_ITEMS), [0, math.log(2)])
    np.testing.assert_allclose(coverage(counts, num_items=NUM_ITEMS), [1 / 5, 2 / 5])
    np.testing.assert_allclose(gini(counts, num_items=NUM_ITEMS), [1, (2 * 2 + 4 * 2) / (4 * 4)])


def test_groups_by_hand():
    """100 events: 30 | 20 20 | 10 | 8 8 | 4 | 0.

    Head: nothing is more popular than 30, and 30 >= 20, so the items of 20 are not in it. Tail: items up to 4 hold 4,
    up to 8 hold 20, a fifth at most; up to 10 hold 30.
    """
    groups = popularity_groups(np.array([20, 30, 8, 0, 20, 10, 8, 4]))
    assert groups.tolist() == [MID, HEAD, TAIL, TAIL, MID, MID, TAIL, TAIL]


def test_items_of_equal_popularity_are_on_one_side():
    assert popularity_groups(np.array([1, 1, 1, 1])).tolist() == [HEAD] * 4
    assert popularity_groups(np.array([3, 3, 1, 1, 1, 1, 1, 0])).tolist() == [HEAD] * 2 + [MID] * 5 + [TAIL]
    assert popularity_groups(np.array([0, 0])).tolist() == [TAIL] * 2
    assert popularity_groups(np.array([], dtype=np.int64)).tolist() == []


def test_group_shares_and_popularity_by_hand():
    """k = 2. Row 0: head, tail; row 1: head and a place outside; row 2: nothing of the catalogue, so left out."""
    ranked = np.array([[1, 2, 0], [1, 9, 1], [-1, 7, 0]])
    popularity = np.array([5, 30, 2])
    groups = np.array([MID, HEAD, TAIL])
    np.testing.assert_allclose(group_share(ranked, groups, HEAD, k=2), [1 / 2, 1, math.nan])
    np.testing.assert_allclose(group_share(ranked, groups, TAIL, k=2), [1 / 2, 0, math.nan])
    np.testing.assert_allclose(recommended_popularity(ranked, popularity, k=2), [16, 30, math.nan])


def naive(ranked, k):
    """Row by row and item by item."""
    counts = Counter(item for row in ranked for item in row[:k] if 0 <= item < NUM_ITEMS)
    total = sum(counts.values())
    pairs = sum(abs(counts[a] - counts[b]) for a in range(NUM_ITEMS) for b in range(NUM_ITEMS))
    return {
        # Half the mean absolute difference of two items over the mean, scaled from I^2 to I (I - 1) pairs.
        "gini": pairs / (2 * (NUM_ITEMS - 1) * total) if total else math.nan,
        "entropy": -sum(c / total * math.log(c / total) for c in counts.values()) if total else math.nan,
        "coverage": len(counts) / NUM_ITEMS,
    }


@st.composite
def cases(draw):
    num_rows, places = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    index = st.integers(-1, NUM_ITEMS + 1)
    ranked = draw(st.lists(st.lists(index, min_size=places, max_size=places), min_size=num_rows, max_size=num_rows))
    return np.array(ranked), draw(st.integers(1, places))


@settings(max_examples=200, deadline=None)
@given(cases())
def test_spread_equals_a_naive_implementation_and_keeps_its_bounds(case):
    ranked, k = case
    found = spread(ranked, k)
    assert found == pytest.approx(naive(ranked, k), nan_ok=True, abs=1e-12)
    bounds = {"gini": 1, "entropy": math.log(NUM_ITEMS), "coverage": 1}
    assert all(math.isnan(value) or -1e-12 <= value <= bounds[name] + 1e-12 for name, value in found.items())


@settings(max_examples=100, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_neither_the_order_of_rows_nor_the_numbering_of_items_matters(case, random):
    ranked, k = case
    rows, items = list(range(len(ranked))), list(range(NUM_ITEMS))
    random.shuffle(rows)
    random.shuffle(items)
    table = np.array([*items, *range(NUM_ITEMS, NUM_ITEMS + 2), -1])  # the last is reached as -1
    assert spread(table[ranked[rows]], k) == pytest.approx(spread(ranked, k), nan_ok=True, abs=1e-12)
    popularity = np.array([7, 3, 3, 1, 0])
    renumbered = np.empty(NUM_ITEMS, dtype=np.int64)
    renumbered[items] = popularity
    shares = [
        group_share(lists, popularity_groups(events), HEAD, k=k)
        for lists, events in ((ranked[rows], popularity), (table[ranked[rows]], renumbered))
    ]
    np.testing.assert_allclose(shares[0], shares[1])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=12))
def test_groups_equal_their_definition_item_by_item(events):
    groups = popularity_groups(np.array(events))
    total = sum(events)
    for own, group in zip(events, groups, strict=True):
        more = sum(other for other in events if other > own)
        at_most = sum(other for other in events if other <= own)
        expected = HEAD if 5 * more < total else TAIL if 5 * at_most <= total else MID
        assert group == expected
