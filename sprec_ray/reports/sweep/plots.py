"""The plots of a sweep's page: the Pareto front, heat maps of every metric, curves over the iterations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from sprec_ray.reports.markup import note
from sprec_ray.reports.svg.heatmap import HeatCell, HeatMap, heat_map
from sprec_ray.reports.svg.labels import Point
from sprec_ray.reports.svg.plots import Axes, Series, line_plot, number_ticks
from sprec_ray.reports.sweep.chosen_trial import pareto_front
from sprec_ray.reports.sweep.names import hint, line_styles, metric_columns, short_names, show, trial_labels
from sprec_ray.reports.sweep.results import SweepData, TrialRecord
from sprec_ray.reports.tables import Column, column_of


def is_grid(data: SweepData) -> bool:
    """Whether the sweep is drawn as heat maps: two parameters with listed values."""
    return len(data.parameters) == 2 and all(parameter.values for parameter in data.parameters)


def pareto_plot(data: SweepData) -> str:
    """Accuracy against diversity of every trial's last policy, with the front and the chosen trial."""
    accuracy, diversity = column_of(data.metric), column_of(data.diversity)
    higher = (data.mode == "max", not diversity.lower_is_better)
    labels = trial_labels(data)
    shown = [trial for trial in data.trials if trial.status in ("finished", "stopped") and _finite(data, trial)]
    finished = [trial for trial in shown if trial.status == "finished"]
    place = {trial.name: (trial.final(data.metric), trial.final(data.diversity)) for trial in shown}
    best = [finished[index] for index in pareto_front([place[trial.name] for trial in finished], higher=higher)]
    groups = [
        ("ring", f"chosen: {labels[data.chosen]}" if data.chosen else "", [t for t in shown if t.name == data.chosen]),
        ("s0", "not dominated", best),
        ("rest", "dominated", [trial for trial in finished if trial not in best]),
        ("rest hollow", "stopped early", [trial for trial in shown if trial.status == "stopped"]),
    ]
    series = [Series(name="", points=_corners([place[trial.name] for trial in best]), css="s0 thin")]
    for css, name, trials in groups:
        series += [
            Series(
                name=name,
                points=[place[trial.name] for trial in trials],
                markers=True,
                joined=False,
                css=css,
                radius=7.0 if css == "ring" else 4.0,
                labels=[
                    labels[t.name] if css == "ring" else "" if t.name == data.chosen else f"{_number(labels[t.name])}"
                    for t in trials
                ],
                hints=[hint(labels[trial.name], trial, (accuracy, diversity)) for trial in trials],
            )
        ] * bool(trials)
    axes = Axes(
        width=760,
        height=400,
        x_ticks=number_ticks([x for x, _ in place.values()]),
        from_zero=False,
        x_title=f"{accuracy.title} ({accuracy.meaning})",
        y_title=f"{diversity.title} ({diversity.meaning})",
    )
    plot = line_plot("", series, axes)
    explanation = note(
        "Each point is the last policy of one trial. Points on the line are not dominated: no other finished trial is "
        "at least as good in both and better in one. Numbers are those of the table; some are left out in a crowd."
    )
    return explanation + f'<div class="narrow">{plot}</div>' if plot else ""


def metric_maps(data: SweepData) -> str:
    """A heat map of every metric over the two parameters: values of the trials' last policies."""
    rows, across = data.parameters
    short = short_names(data.parameters)
    maps = [
        heat_map(
            HeatMap(
                title=column.heading,
                meaning=column.meaning,
                rows=[show(value) for value in rows.values],
                columns=[show(value) for value in across.values],
                row_title=short[rows.name],
                column_title=short[across.name],
                cells=_cells(data, column),
                lower_is_better=column.lower_is_better,
            )
        )
        for column in metric_columns(data, every=True)
    ]
    explanation = note(
        f"{rows.name} down, {across.name} across. Each cell is the last policy of one trial; the strongest colour is "
        "the best value of the map. The outlined cell is the chosen trial. Words mark trials that failed, were stopped "
        "early, or have not been run."
    )
    css = "plots" if len(across.values) <= 5 else "wide"
    return explanation + f'<div class="{css} maps">{"".join(maps)}</div>' if maps else ""


def iteration_curves(data: SweepData) -> str:
    """The metrics over the iterations: a line per trial."""
    styles, labels = line_styles(data), trial_labels(data)
    # Grey lines first: what is coloured lies on top.
    trials = sorted((t for t in data.trials if t.policies), key=lambda trial: trial.name == data.chosen)
    stages = sorted({result.label for trial in trials for result in trial.policies}, key=_stage_order)
    places = {label: float(index) for index, label in enumerate(stages)}
    plots = []
    for column in metric_columns(data, every=False):
        series = [
            Series(
                name=labels[trial.name],
                points=[(places[result.label], result.metrics.get(column.key, math.nan)) for result in trial.policies],
                markers=True,
                css=styles.css(trial) + (" bold" if trial.name == data.chosen else ""),
                radius=2.5,
            )
            for trial in trials
        ]
        axes = Axes(
            width=340,
            height=210,
            x_ticks=[(place, label.removeprefix("iteration-")) for label, place in places.items()],
            x_title="iteration",
            y_title=column.unit,
            from_zero=False,
            legend=False,
        )
        plots.append(line_plot(column.heading, series, axes))
    if not any(plots):
        return ""
    explanation = note(
        "One line per trial, from the policy after the first SFT over the iterations; the chosen trial is the thick "
        "line, and lines that end early were stopped or failed. The arrow points to better."
    )
    return explanation + styles.legend() + f'<div class="plots">{"".join(plots)}</div>'


def _cells(data: SweepData, column: Column) -> dict[tuple[int, int], HeatCell]:
    """By place in the grid; of trials with equal settings the chosen, then a finished one, then the first is shown."""
    labels = trial_labels(data)
    rows, across = data.parameters
    cells: dict[tuple[int, int], HeatCell] = {}
    ranked = sorted(data.trials, key=lambda trial: (trial.name != data.chosen, trial.status != "finished"))
    for trial in ranked:
        setting = trial.parameters.get(rows.name), trial.parameters.get(across.name)
        if setting[0] not in rows.values or setting[1] not in across.values:
            continue
        place = rows.values.index(setting[0]), across.values.index(setting[1])
        failed = trial.status == "failed"
        cell = HeatCell(
            value=math.nan if failed else trial.final(column.key),
            mark="" if trial.status == "finished" else trial.status,
            hint=hint(labels[trial.name], trial, (column,)),
            chosen=trial.name == data.chosen,
        )
        cells.setdefault(place, cell)
    return cells


def _finite(data: SweepData, trial: TrialRecord) -> bool:
    return math.isfinite(trial.final(data.metric)) and math.isfinite(trial.final(data.diversity))


def _corners(front: Sequence[Point]) -> list[Point]:
    """The edge of what the front dominates: from point to point by way of the worse of both coordinates."""
    path = list(front[:1])
    for before, after in pairwise(front):
        path += [(before[0], after[1]), after]
    return path


def _stage_order(label: str) -> tuple[bool, int]:
    return label != "sft", int(label.rsplit("-", 1)[-1]) if label != "sft" else 0


def _number(label: str) -> str:
    return label.split(" ", 1)[0]
