"""The training curves of the report, and which preference phases pushed the chosen titles down."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from sprec_ray.reports.markup import note
from sprec_ray.reports.svg.labels import Point
from sprec_ray.reports.svg.plots import Axes, Series, line_plot

Steps = Sequence[Mapping[str, float]]
Training = Mapping[str, Steps]

MAX_POINTS = 240
"""Points drawn per line; longer runs are averaged in stretches."""
MAX_FALL_NATS = 3.0
"""A chosen title that is e^3 = 20 times less probable than under the reference is worth a warning."""

_PREFERENCE_PLOTS: tuple[tuple[str, Mapping[str, str]], ...] = (
    ("Preference loss", {"loss": "loss"}),
    ("Rewards", {"reward_chosen": "chosen", "reward_rejected": "rejected"}),
    ("Reward margin", {"margin": "margin"}),
    ("Accuracy (chosen above rejected)", {"accuracy_all": "all", "accuracy_one": "at least one"}),
    ("Log-probability, nats", {"logp_chosen": "chosen", "logp_rejected": "rejected"}),
)


def training_plots(training: Training) -> str:
    """One plot per quantity, the phases of the run one after another along the step axis."""
    preference = {name: steps for name, steps in training.items() if steps and "reward_chosen" in steps[0]}
    supervised = {name: steps for name, steps in training.items() if steps and name not in preference}
    plots = [_plot("SFT loss, nats per token", supervised, {"loss": "loss"})]
    plots += [_plot(title, preference, keys) for title, keys in _PREFERENCE_PLOTS]
    if not any(plots):
        return ""
    explanation = note(
        "Each stretch between vertical lines is one phase; optimizer and schedule restart in each. Rewards are beta "
        "times the log-probability gained over the reference; log-probabilities are sums over a title's tokens."
    )
    return explanation + f'<div class="wide">{"".join(plots)}</div>'


def fallen_phases(training: Training, *, beta: float | None) -> Iterator[tuple[str, float]]:
    """(phase, nats) of every preference phase whose chosen log-probability fell by more than MAX_FALL_NATS.

    The fall is measured against the reference on the same rows, ``-reward_chosen / beta``, averaged over the last tenth
    of the steps; without beta it is the last tenth of ``logp_chosen`` less the first, which also sees the rows change.
    """
    for phase, steps in training.items():
        tail = max(1, len(steps) // 10)
        if beta and steps and "reward_chosen" in steps[0]:
            fall = -_mean(steps[-tail:], "reward_chosen") / beta
        elif steps and "logp_chosen" in steps[0]:
            fall = _mean(steps[:tail], "logp_chosen") - _mean(steps[-tail:], "logp_chosen")
        else:
            continue
        if fall > MAX_FALL_NATS:
            yield phase, fall


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most ``most`` points: each the mean of an equal stretch.

    >>> thin([(0, 1.0), (1, 3.0), (2, 5.0), (3, 7.0)], 2)
    [(0.5, 2.0), (2.5, 6.0)]
    """
    if len(points) <= most:
        return list(points)
    stretch = math.ceil(len(points) / most)
    groups = [points[first : first + stretch] for first in range(0, len(points), stretch)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _plot(title: str, phases: Training, keys: Mapping[str, str]) -> str:
    keys = {key: name for key, name in keys.items() if any(key in steps[0] for steps in phases.values())}
    lines: dict[str, list[Point]] = {name: [] for name in keys.values()}
    ticks, separators, first = [], [], 0
    for phase, steps in phases.items():
        for key, name in keys.items():
            points = [(float(first + index), step.get(key, math.nan)) for index, step in enumerate(steps)]
            # A NaN between phases breaks the line: the schedule restarts there.
            lines[name] += [*thin(points, MAX_POINTS), (first + len(steps) - 0.5, math.nan)]
        ticks.append((first + len(steps) / 2 - 0.5, _short(phase)))
        first += len(steps)
        separators.append(first - 0.5)
    bounded = title.startswith(("Accuracy", "Preference loss", "SFT"))
    axes = Axes(width=480, height=210, x_ticks=ticks, separators=separators[:-1], from_zero=bounded)
    return line_plot(title, [Series(name=name, points=points) for name, points in lines.items()], axes)


def _short(phase: str) -> str:
    """``iteration-3/preference`` is ``3`` under a plot that says what is plotted."""
    return phase.split("/")[0].removeprefix("iteration-")


def _mean(steps: Steps, key: str) -> float:
    values = [step[key] for step in steps if key in step]
    return sum(values) / len(values) if values else math.nan
