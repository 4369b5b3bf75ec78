"""The chosen trial and the Pareto front, on points whose answers are read off by eye."""

import math

import pytest

from sprec_ray.reports.sweep.chosen_trial import choose_trial, pareto_front
from sprec_ray.reports.sweep.results import TrialRecord
from sprec_ray.types import EvalResult

NAN = math.nan


def trial(name, ndcg, diversity=0.5, *, status="finished", labels=("sft", "iteration-0")):
    """A trial whose last policy has these metrics; its earlier ones are better."""
    values = [{"ndcg@5": 0.9, "div_ratio@5": 0.9, "or_ratio@5": 0.0}] * (len(labels) - 1)
    values += [{"ndcg@5": ndcg, "div_ratio@5": diversity, "or_ratio@5": 1 - diversity}]
    results = tuple(EvalResult(label=a, metrics=b, counts={}) for a, b in zip(labels, values, strict=True))
    return TrialRecord(name=name, parameters={}, status=status, results=results)


def choose(*trials, mode="max", diversity="div_ratio@5"):
    return choose_trial(trials, metric="ndcg@5", mode=mode, diversity=diversity)


def test_the_best_last_policy_is_chosen():
    trials = [trial("a", 0.1), trial("b", 0.3), trial("c", 0.2)]
    assert choose(*trials) == "b"
    assert choose(*trials, mode="min") == "a"


@pytest.mark.parametrize("diversity", ["div_ratio@5", "or_ratio@5"])
def test_ties_go_to_the_more_diverse_and_then_to_the_first(diversity):
    """0.7 of DivRatio is an ORRatio of 0.3: both say that b and c are the more diverse."""
    trials = [trial("a", 0.3, 0.5), trial("b", 0.3, 0.7), trial("c", 0.3, 0.7), trial("d", 0.3, NAN)]
    assert choose(*trials, diversity=diversity) == "b"
    assert choose(*trials, mode="min", diversity=diversity) == "b"


def test_only_finished_trials_with_the_metric_are_compared():
    better = [trial(status, 0.9, status=status) for status in ("stopped", "failed", "unfinished")]
    assert choose(*better, trial("nan", NAN), trial("a", 0.1)) == "a"
    assert choose(*better, trial("nan", NAN)) is None
    assert choose() is None


def test_baselines_among_the_results_are_not_the_last_policy():
    assert choose(trial("a", 0.1), trial("b", 0.2), trial("c", 0.9, labels=("base", "popularity"))) == "b"


def test_a_front_of_hand_made_points():
    r"""b, d and e are not dominated; a is under b, c under d (equal y, smaller x), f under all.

    y 3 | a b
      2 |   c d
      1 | f     e
        +-1-2-3-4 x
    """
    a, b, c, d, e, f = (1, 3), (2, 3), (2, 2), (3, 2), (4, 1), (1, 1)
    points = [a, b, c, d, e, f]
    assert pareto_front(points) == [1, 3, 4]
    assert pareto_front(points, higher=(False, True)) == [0]
    assert pareto_front(points, higher=(True, False)) == [4]
    assert pareto_front(points, higher=(False, False)) == [5]


def test_fewer_is_better_reverses_the_order_along_the_front():
    assert pareto_front([(1, 1), (2, 2), (3, 3)], higher=(False, True)) == [2, 1, 0]


def test_equal_points_stay_together_and_nan_is_left_out():
    assert pareto_front([(1, 1), (1, 1), (NAN, 9), (9, NAN)]) == [0, 1]
    assert pareto_front([(1, 1), (1, 1), (1, 2)]) == [2]
    assert pareto_front([(NAN, NAN)]) == []
    assert pareto_front([]) == []
    assert pareto_front([(2, 5)]) == [0]


def test_infinite_values_are_compared():
    assert pareto_front([(-math.inf, 1), (0, 0), (0, math.inf)]) == [2]
