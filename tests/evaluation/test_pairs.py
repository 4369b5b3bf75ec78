from __future__ import annotations

import itertools
import logging
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprec_ray.evaluation.pairs import (
    PAIR_METRICS,
    auc,
    mean_logp,
    mean_probability,
    pair_accuracy,
    pair_accuracy_se,
    pair_metrics,
    pair_rows,
    paired_auc_se,
    response_scores,
    scored_metrics,
    scored_rows,
    sum_logp,
    yes_no_scores,
)

SCORES = st.lists(st.integers(0, 5), min_size=1, max_size=12)
"""Few values, so that ties are frequent."""


def test_the_three_scores_of_an_ordering() -> None:
    """Tokens of probability 1/2 and 1/8: mean 5/16, mean log -2 log 2, sum -4 log 2."""
    logps = [math.log(1 / 2), math.log(1 / 8)]
    assert mean_probability(logps) == pytest.approx(5 / 16)
    assert mean_logp(logps) == pytest.approx(-2 * math.log(2))
    assert sum_logp(logps) == pytest.approx(-4 * math.log(2))


def test_auc_by_hand() -> None:
    """Positives 3, 2, 1 against 2, 0: wins 2, 1.5 and 1 of 6 pairs."""
    assert auc([3, 2, 1], [2, 0]) == pytest.approx(4.5 / 6)


@given(SCORES, SCORES)
def test_auc_is_the_count_over_all_pairs(positive: list[int], negative: list[int]) -> None:
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in itertools.product(positive, negative)]
    assert auc(positive, negative) == pytest.approx(sum(wins) / len(wins))
    assert auc(positive, negative) + auc(negative, positive) == pytest.approx(1)
    assert auc(np.exp(positive), np.exp(negative)) == pytest.approx(auc(positive, negative))  # only the order counts


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12))
def test_standard_error_is_that_of_the_sums_of_placements(rows: list[tuple[int, int]]) -> None:
    """Obuchowski 1997 with one positive and one negative per row, each placement counted pair by pair."""

    def wins(p: float, n: float) -> float:
        return 1.0 if p > n else 0.5 if p == n else 0.0

    positive, negative = zip(*rows, strict=True)
    sums = [
        sum(wins(p, n) for n in negative) / len(rows) + sum(wins(other, own) for other in positive) / len(rows)
        for p, own in rows
    ]
    whole = sum(sums) / len(rows)
    variance = sum((value - whole) ** 2 for value in sums) / (len(rows) * (len(rows) - 1))
    assert paired_auc_se(positive, negative) == pytest.approx(math.sqrt(variance), abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12))
def test_what_rows_add_has_the_metrics_as_mean_and_their_errors_as_spread(rows: list[tuple[int, int]]) -> None:
    positive, negative = zip(*rows, strict=True)
    added, metrics = pair_rows(positive, negative, ending="_x"), pair_metrics(positive, negative, ending="_x")
    for name, ddof in (("auc_x", 1), ("pair_accuracy_x", 0)):
        assert added[name].mean() == pytest.approx(metrics[name], abs=1e-12)
        error = np.std(added[name], ddof=ddof) / np.sqrt(len(rows))
        assert error == pytest.approx(metrics[f"{name}_se"], abs=1e-12)


def test_p_yes_is_read_from_both_titles() -> None:
    """Liked: Yes. .6 to No. .2, disliked: No. .1 to Yes. .4, so the odds of Yes. are 3 and 4."""
    logps = [[[math.log(0.6)], [math.log(0.2)]], [[math.log(0.1)], [math.log(0.4)]]]
    liked, disliked = yes_no_scores(logps)[""]
    assert (liked.tolist(), disliked.tolist()) == (pytest.approx([math.log(3)]), pytest.approx([math.log(4)]))


def test_a_policy_that_always_says_no_is_not_right_in_every_row() -> None:
    """Log-odds of Yes.: -50 for the liked title, -40 for the disliked one; nor is one that always says Yes. ties."""
    for liked, disliked in ((-50.0, -40.0), (40.0, 45.0)):
        logps = [[[liked], [0.0]], [[0.0], [disliked]]]
        assert scored_metrics(yes_no_scores(logps))["pair_accuracy"] == 0


def test_standard_error_agrees_with_the_spread_over_repeated_draws() -> None:
    """Rows with a common part, which pooled AUC cannot use: 300 draws of 200 rows spread as the formula says."""
    rng = np.random.default_rng(0)
    aucs, errors = [], []
    for _ in range(300):
        common = rng.normal(size=200)
        positive, negative = common + rng.normal(0.5, 1, 200), common + rng.normal(0, 1, 200)
        aucs.append(auc(positive, negative))
        errors.append(paired_auc_se(positive, negative))
    assert np.mean(errors) == pytest.approx(np.std(aucs), rel=0.1)


def test_a_pair_is_right_wrong_or_tied() -> None:
    """Right, wrong, tied: 1.5 of 3; the spread of (1, 0, 1/2) is sqrt(1/6)."""
    assert pair_accuracy([2, 1, 1], [1, 2, 1]) == pytest.approx(0.5)
    assert pair_accuracy_se([2, 1, 1], [1, 2, 1]) == pytest.approx(math.sqrt(1 / 6) / math.sqrt(3))


def test_accuracy_looks_at_a_row_and_auc_at_all() -> None:
    """Every row is right, and the second row's negative is above the first row's positive."""
    metrics = pair_metrics([1, 3], [0, 2])
    assert metrics["pair_accuracy"] == 1.0
    assert metrics["auc"] == pytest.approx(0.75)


@pytest.mark.parametrize(("positive", "negative"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0])])
def test_one_class_is_undefined_and_warned_of(
    positive: list[float], negative: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert math.isnan(auc(positive, negative))
    assert "auc is undefined" in caplog.text


def test_no_row_is_undefined(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert all(math.isnan(value) for value in pair_metrics([], []).values())
    assert "pair_accuracy is undefined" in caplog.text


def test_scores_may_rank_orderings_differently() -> None:
    """A short sure answer beside a long one: by mean probability the right ordering loses, by the sum it wins."""
    right, wrong = [math.log(0.5)], [math.log(0.9), math.log(0.2), math.log(0.9)]
    scores = response_scores([right], [wrong])
    metrics = scored_metrics(scores)
    assert (metrics["pair_accuracy"], metrics["pair_accuracy_sum_logp"]) == (0.0, 1.0)
    assert set(PAIR_METRICS) == {name for name in metrics if not name.endswith("_se")} == set(scored_rows(scores))
