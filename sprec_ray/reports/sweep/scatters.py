"""Scatter plots of every metric over every parameter, for sweeps that are no grid of two parameters."""

from __future__ import annotations

import math

from sprec_ray.reports.markup import cut, note
from sprec_ray.reports.svg.plots import Axes, Series, line_plot, number_ticks
from sprec_ray.reports.sweep.names import hint, line_styles, metric_columns, short_names, show, trial_labels
from sprec_ray.reports.sweep.results import SweepData, SweepParameter, TrialRecord
from sprec_ray.reports.tables import Column


def metric_scatters(data: SweepData) -> str:
    """Every metric against every parameter, a row of plots per metric: values of the trials' last policies."""
    styles, labels = line_styles(data), trial_labels(data)
    found = metric_columns(data, every=True)
    first = {data.metric, data.diversity}
    rows = {True: "", False: ""}
    for column in found:
        plots = [_scatter(data, column, parameter) for parameter in data.parameters]
        rows[column.key in first] += f'<div class="plots">{"".join(plots)}</div>' if any(plots) else ""
    if not any(rows.values()):
        return ""
    without = [labels[trial.name] for trial in data.trials if not trial.policies]
    missing = f" Without a result: {'; '.join(without)}." if without else ""
    explanation = note(
        "Each point is the last policy of one trial, hollow where the trial did not finish; the ring is the chosen "
        f"trial. A pointer over a point shows its settings.{missing}"
    )
    others = f"<details><summary>All other metrics</summary>{rows[False]}</details>" if rows[False] else ""
    return explanation + styles.legend(dashes=False) + rows[True] + others


def _scatter(data: SweepData, column: Column, parameter: SweepParameter) -> str:
    styles, labels = line_styles(data), trial_labels(data)
    placed = [
        (trial, (_position(parameter, trial), trial.final(column.key)))
        for trial in data.trials
        if math.isfinite(_position(parameter, trial))
    ]
    series = [
        Series(
            name="",
            points=[point],
            markers=True,
            joined=False,
            css=css,
            radius=radius,
            hints=[hint(labels[trial.name], trial, (column,))],
        )
        for trial, point in placed
        for css, radius in _scatter_marks(styles.css(trial), trial, data.chosen)
    ]
    if parameter.values:
        room = max(2, 40 // len(parameter.values))
        x_ticks = [(float(index), cut(show(value), room)) for index, value in enumerate(parameter.values)]
    else:
        positions = [x for _, (x, _) in placed]
        x_ticks = _log_ticks(parameter, positions) if parameter.log else number_ticks(positions)
    axes = Axes(
        width=340,
        height=210,
        x_ticks=x_ticks,
        x_title=parameter.name + (" (logarithmic)" if parameter.log and not parameter.values else ""),
        y_title=column.unit,
        from_zero=False,
    )
    title = f"{column.heading} over {short_names(data.parameters)[parameter.name]}"
    return line_plot(title, series, axes) if series else ""


def _scatter_marks(css: str, trial: TrialRecord, chosen: str | None) -> list[tuple[str, float]]:
    mark = (css if trial.status == "finished" else f"{css} hollow", 3.5)
    return [mark, ("ring", 6.5)] if trial.name == chosen else [mark]


def _position(parameter: SweepParameter, trial: TrialRecord) -> float:
    """Where a trial is on a parameter's axis: the place of a listed value, else the number, or its logarithm."""
    value = trial.parameters.get(parameter.name)
    if parameter.values:
        return float(parameter.values.index(value)) if value in parameter.values else math.nan
    if isinstance(value, str) or value is None or (parameter.log and value <= 0):
        return math.nan
    return math.log10(value) if parameter.log else float(value)


def _log_ticks(parameter: SweepParameter, placed: list[float]) -> list[tuple[float, str]]:
    """1, 2 and 5 times the powers of ten between the range's ends, at their logarithms; without any, the ends."""
    ends = [*(math.log10(end) for end in (parameter.low, parameter.high) if end), *placed]
    low, high = min(ends), max(ends)
    powers = range(math.floor(low), math.ceil(high) + 1)
    marks = [math.log10(factor) + power for power in powers for factor in ((1, 2, 5) if high - low <= 2.1 else (1,))]
    inside = [mark for mark in marks if low - 1e-9 <= mark <= high + 1e-9]
    return [(mark, f"{10**mark:.3g}") for mark in inside or [low, high]]
