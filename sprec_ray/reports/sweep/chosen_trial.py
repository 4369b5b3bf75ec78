"""Which trial of a sweep is chosen, and which trials are not dominated in accuracy and diversity together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sprec_ray.reports.sweep.results import Mode, TrialRecord
from sprec_ray.reports.tables import column_of


def choose_trial(trials: Sequence[TrialRecord], *, metric: str, mode: Mode, diversity: str) -> str | None:
    """The name of the finished trial whose last policy has the best ``metric``; None without one.

    Between equal ones the better ``diversity`` decides, then the order of the trials. A trial that was stopped early
    is not compared: its last policy had fewer iterations.
    """
    sign = 1.0 if mode == "max" else -1.0
    second = -1.0 if column_of(diversity).lower_is_better else 1.0

    def rank(trial: TrialRecord) -> tuple[float, float]:
        tie = second * trial.final(diversity)
        return sign * trial.final(metric), -math.inf if math.isnan(tie) else tie

    able = [trial for trial in trials if trial.status == "finished" and not math.isnan(trial.final(metric))]
    return max(able, key=rank).name if able else None


def pareto_front(points: Sequence[tuple[float, float]], *, higher: tuple[bool, bool] = (True, True)) -> list[int]:
    """Indices of the points that no other point dominates, from the worst first coordinate to the best.

    A point dominates another when it is at least as good in both coordinates and better in one; so equal points stay
    together. Points with a NaN are left out. ``higher`` says for each coordinate whether more is better.

    >>> pareto_front([(1, 3), (2, 2), (1, 2), (3, 1)])
    [0, 1, 3]
    """
    signs = [1.0 if up else -1.0 for up in higher]
    signed = {
        index: (signs[0] * x, signs[1] * y)
        for index, (x, y) in enumerate(points)
        if not (math.isnan(x) or math.isnan(y))
    }
    front = [
        index
        for index, (x, y) in signed.items()
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in signed.values())
    ]
    return sorted(front, key=lambda index: (signed[index][0], -signed[index][1]))
