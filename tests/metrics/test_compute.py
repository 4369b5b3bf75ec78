"""Metrics: hand-worked values, a naive second implementation, identities and bounds."""

import logging
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprec_ray.metrics import diversity, genres
from sprec_ray.metrics.accuracy import hr, hr_se, ndcg
from sprec_ray.metrics.compute import METRICS, compute_metrics
from sprec_ray.metrics.genres import genre_gaps, genre_weights, kept_genres
from sprec_ray.metrics.kinds import Recommendations
from sprec_ray.metrics.places import place_counts

NUM_ITEMS = 6
GENRES = ("A", "B")
ITEM_GENRES = [("A",), ("B",), ("A", "B"), (), ("A", "other"), ("B", "A")]
RANKED = np.array([[0, 1], [2, 0], [0, 2], [0, 1]])
TARGETS = np.array([0, 0, 5, -1])


def weights(counting):
    return genre_weights(ITEM_GENRES, GENRES, counting=counting)


def div_ratio(ranked, *, k):
    return float(diversity.div_ratio(place_counts(ranked, k=k))[0])


def or_ratio(ranked, *, k):
    return float(diversity.or_ratio(place_counts(ranked, k=k))[0])


def mgu(ranked, history, weights_IG, *, k):
    return float(genres.mgu(genre_gaps(ranked, history, weights_IG, k=k)))


def dgu(ranked, history, weights_IG, *, k):
    return float(genres.dgu(genre_gaps(ranked, history, weights_IG, k=k)))


def test_accuracy_by_hand():
    """Row 0 hits at rank 0, row 1 at rank 1, row 2 misses, row 3's target is unknown; n = 4.

    HR@1 = 1/4, HR@2 = 2/4, NDCG@2 = (1/log2(2) + 1/log2(3)) / 4, SE of HR@2 = sqrt(.5 * .5 / 4) = 1/4.
    """
    assert hr(RANKED, TARGETS, k=1) == 0.25
    assert hr(RANKED, TARGETS, k=2) == 0.5
    assert ndcg(RANKED, TARGETS, k=2) == pytest.approx((1 + 1 / math.log2(3)) / 4)
    assert hr_se(RANKED, TARGETS, k=2) == pytest.approx(0.25)


def test_diversity_by_hand():
    """k = 2: items 0, 1, 2 in 8 places, so 3/8; all 8 places belong to the top three, so 8/8. k = 1: 0 three times."""
    assert div_ratio(RANKED, k=2) == 3 / 8
    assert or_ratio(RANKED, k=2) == 1.0
    assert div_ratio(RANKED, k=1) == 2 / 4
    assert or_ratio(np.arange(10).reshape(5, 2), k=2) == 3 / 10


def test_published_denominators_drop_the_row_with_an_unknown_target():
    """k = 1, rows 0-2: items 0, 2, 0, so 2 distinct in 3 places; HR keeps all 4 rows."""
    given_ = Recommendations(ranked_BK=RANKED, targets_B=TARGETS, history_H=np.array([1]), weights_IG={})
    published = compute_metrics(given_, [1], rows="published")
    assert published["div_ratio@1"] == 2 / 3
    assert published["hr@1"] == 0.25
    assert compute_metrics(given_, [1])["div_ratio@1"] == 2 / 4


def test_fairness_by_hand_with_split_counting():
    """k = 1 recommends 0, 2, 0, 0: A gets 3 + 1/2, B gets 1/2, so GP = (7/8, 1/8).

    The history 1, 2, 3, unknown: A gets 1/2, B gets 1 + 1/2, so GH = (1/4, 3/4). Gaps (+5/8, -5/8).
    """
    history = np.array([1, 2, 3, -1])
    np.testing.assert_allclose(genre_gaps(RANKED, history, weights("split"), k=1), [5 / 8, -5 / 8])
    assert mgu(RANKED, history, weights("split"), k=1) == pytest.approx(5 / 8)
    assert dgu(RANKED, history, weights("split"), k=1) == pytest.approx(10 / 8)


def test_fairness_by_hand_with_whole_counting():
    """The same rows: A gets 3 + 1, B gets 1, so GP = (4/5, 1/5); GH = (1/3, 2/3). Gaps (+7/15, -7/15)."""
    history = np.array([1, 2, 3, -1])
    np.testing.assert_allclose(genre_gaps(RANKED, history, weights("whole"), k=1), [7 / 15, -7 / 15])


def test_a_title_outside_the_catalogue_is_distinct_but_has_no_genre_and_an_empty_place_is_nothing():
    """k = 2 over 2 rows: item 0, one foreign title, two empty places: 2 distinct in 4 places."""
    ranked = np.array([[0, NUM_ITEMS], [-1, -1]])
    assert div_ratio(ranked, k=2) == 2 / 4
    assert or_ratio(ranked, k=2) == 2 / 4
    assert hr(ranked, np.array([3, -1]), k=2) == 0
    np.testing.assert_allclose(genre_gaps(ranked, np.array([0]), weights("split"), k=2), [0, 0])


def naive(ranked, targets, history, counting, k):
    """Every metric, row by row."""
    n, hits, gain = len(ranked), 0, 0.0
    recommended = Counter()
    shares = [Counter(), Counter()]
    for row, target in zip(ranked, targets, strict=True):
        top = list(row[:k])
        if target >= 0 and target in top:
            hits += 1
            gain += math.log(2) / math.log(top.index(target) + 2)
        recommended.update(item for item in top if item >= 0)
    for share, items in ((shares[0], list(recommended.elements())), (shares[1], history)):
        for item in items:
            kept = [genre for genre in ITEM_GENRES[item] if genre in GENRES] if 0 <= item < NUM_ITEMS else []
            for genre in kept:
                share[genre] += 1 / len(kept) if counting == "split" else 1
    totals = [sum(share.values()) for share in shares]
    gaps = [math.nan]
    if all(totals):
        gaps = [shares[0][genre] / totals[0] - shares[1][genre] / totals[1] for genre in GENRES]
    return {
        "hr": hits / n,
        "hr_se": math.sqrt(hits / n * (1 - hits / n) / n),
        "ndcg": gain / n,
        "div_ratio": len(recommended) / (k * n),
        "or_ratio": sum(sorted(recommended.values())[-3:]) / (k * n),
        "mgu": sum(map(abs, gaps)) / len(gaps),
        "dgu": max(gaps) - min(gaps),
    }


@st.composite
def cases(draw):
    num_rows, places = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    index = st.integers(-1, NUM_ITEMS + 1)
    ranked = draw(st.lists(st.lists(index, min_size=places, max_size=places), min_size=num_rows, max_size=num_rows))
    targets = draw(st.lists(st.integers(-1, NUM_ITEMS - 1), min_size=num_rows, max_size=num_rows))
    history = draw(st.lists(st.integers(-1, NUM_ITEMS - 1), max_size=20))
    return np.array(ranked), np.array(targets), np.array(history, dtype=np.int64), draw(st.integers(1, places))


@settings(max_examples=200, deadline=None)
@given(cases())
def test_metrics_equal_a_naive_implementation_and_keep_their_bounds(case):
    ranked, targets, history, k = case
    given_ = Recommendations(
        ranked_BK=ranked,
        targets_B=targets,
        history_H=history,
        weights_IG={"split": weights("split"), "whole": weights("whole")},
    )
    found = compute_metrics(given_, [k])
    assert {f"{name}@{k}" for name in METRICS} - {"ild@1"} == set(found)
    split, whole = (naive(ranked, targets, history, counting, k) for counting in ("split", "whole"))
    expected = split | {"mgu_whole": whole["mgu"], "dgu_whole": whole["dgu"]}
    for name, value in expected.items():
        assert found[f"{name}@{k}"] == pytest.approx(value, nan_ok=True, abs=1e-12)
        bound = 2 if name.startswith("dgu") else 1
        assert math.isnan(value) or -1e-12 <= found[f"{name}@{k}"] <= bound + 1e-12
    assert found[f"ndcg@{k}"] <= found[f"hr@{k}"] + 1e-12
    assert hr(ranked, targets, k=1) == ndcg(ranked, targets, k=1)


def test_recommending_what_users_had_gives_no_unfairness():
    assert mgu(RANKED, RANKED[:, 0], weights("split"), k=1) == pytest.approx(0)
    assert dgu(RANKED, RANKED[:, 0], weights("whole"), k=1) == pytest.approx(0)


def test_undefined_is_nan_with_a_warning(caplog):
    empty = Recommendations(
        ranked_BK=np.zeros((0, 1), dtype=np.int64),
        targets_B=np.zeros(0, dtype=np.int64),
        history_H=np.zeros(0, dtype=np.int64),
        weights_IG={"split": weights("split"), "whole": weights("whole")},
    )
    with caplog.at_level(logging.WARNING):
        found = compute_metrics(empty, [1])
    assert all(math.isnan(value) for value in found.values())
    assert "undefined" in caplog.text
    assert math.isnan(mgu(RANKED, np.array([0]), np.zeros((NUM_ITEMS, 0)), k=1))


def test_too_few_places_is_an_error():
    with pytest.raises(ValueError, match="k=3 needs"):
        hr(RANKED, TARGETS, k=3)
    given_ = Recommendations(ranked_BK=RANKED, targets_B=TARGETS, history_H=np.array([1]), weights_IG={})
    with pytest.raises(ValueError, match="k=\\[\\] must name"):
        compute_metrics(given_, [])


def test_kept_genres_are_the_most_popular_in_train_with_ties_by_name():
    of_title = {"x": ("A", "B"), "y": ("B", "C"), "z": ("C", "A"), "w": ("D",)}
    assert kept_genres({"x": 3, "w": 9, "not in the catalogue": 99}, of_title, num=3) == ("D", "A", "B")
    assert kept_genres({}, of_title, num=10) == ("A", "B", "C", "D")


def test_of_a_parent_and_its_child_the_child_is_kept_and_the_next_moves_up():
    """All CDs are "CDs"; every "Classic Rock" is "Rock", so both parents go and "Jazz" moves up.

    "Live" and "Jazz" overlap without containment; "Twin" covers the same items as "Jazz", so neither is larger.
    """
    of_title = {
        "a": ("CDs", "Rock", "Classic Rock"),
        "b": ("CDs", "Rock"),
        "c": ("CDs", "Jazz", "Twin", "Live"),
        "d": ("CDs", "Jazz", "Twin"),
        "e": ("CDs", "Live"),
    }
    popularity = {"a": 50, "b": 10, "c": 5, "d": 4, "e": 1}
    assert kept_genres(popularity, of_title, num=3) == ("Classic Rock", "Jazz", "Twin")
    assert kept_genres(popularity, of_title, num=9) == ("Classic Rock", "Jazz", "Twin", "Live")


def test_a_parent_whose_child_is_not_among_the_chosen_stays():
    of_title = {"a": ("Drama",), "b": ("Drama", "Noir"), "c": ("Comedy",)}
    assert kept_genres({"a": 9, "b": 1, "c": 5}, of_title, num=2) == ("Drama", "Comedy")
