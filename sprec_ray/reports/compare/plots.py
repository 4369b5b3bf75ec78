"""The plots of a comparison: unfairness by genre, curves over the iterations, and the studies over a setting."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from sprec_ray.reports.compare.results import CompareData, MethodRecord, RunRecord, spread
from sprec_ray.reports.compare.tables import accuracy_key, table_columns
from sprec_ray.reports.markup import escape, note
from sprec_ray.reports.svg.heatmap import HeatCell, HeatMap, heat_map
from sprec_ray.reports.svg.plots import Axes, Series, line_plot
from sprec_ray.reports.tables import Column, column_of
from sprec_ray.types import EvalResult

NUM_COLOURS = 4
CELL_WIDTH = 84
LAST_ITERATIONS = 3
"""Over whose policies a study averages (arXiv 2412.09243, section 5.4)."""


def genre_map(data: CompareData) -> str:
    """|GP - GH| of every kept genre and method at k = 1, mean over seeds (SPRec's Fig. 3)."""
    methods = [method for method in data.table_methods if any(r.genre_gaps for r in data.measured(method.label))]
    genres = list(dict.fromkeys(g for method in methods for r in data.measured(method.label) for g in r.genre_gaps))
    if not methods or not genres:
        return ""
    cells = {}
    for row, method in enumerate(methods):
        for column, genre in enumerate(genres):
            gaps = [abs(result.genre_gaps.get(genre, math.nan)) for result in data.measured(method.label)]
            value = spread(gaps)[0]
            cells[row, column] = HeatCell(value=value, hint=f"{method.label}, {genre}: {value:.4f}")
    drawn = heat_map(
        HeatMap(
            title="",
            meaning="gap in share, lower is better",
            rows=[method.label for method in methods],
            columns=genres,
            row_title="",
            column_title="",
            cells=cells,
            lower_is_better=True,
            cell_width=CELL_WIDTH,
        )
    )
    explanation = note(
        "|GP - GH| at k = 1: the genre's share of the recommendations against its share of the users' histories, mean "
        "over seeds (SPRec's Fig. 3). The strongest colour is the fairest. Their mean over the genres is MGU@1."
    )
    width = 120 + CELL_WIDTH * len(genres)  # a figure fills what is around it: neither tiny nor huge
    sized = f'<div style="min-width:{width}px;max-width:{round(1.3 * width)}px">{drawn}</div>'
    return explanation + f'<div class="scroll">{sized}</div>'


def iteration_section(data: CompareData) -> str:
    """Accuracy, diversity and over-recommendation over the iterations of the methods that have some (Fig. 4)."""
    methods = [method for method in data.table_methods if _num_iterations(data, method) > 0]
    if not methods:
        return ""
    longest = max(_num_iterations(data, method) for method in methods)
    ticks = [(0.0, "SFT"), *((float(place), str(place)) for place in range(1, longest + 1))]
    plots = []
    for column in _curve_columns(data):
        series = [_curve(data, method, index, column) for index, method in enumerate(methods)]
        axes = Axes(
            width=340,
            height=220,
            x_ticks=ticks,
            x_title="iterations",
            y_title=column.unit,
            from_zero=False,
            legend=False,
        )
        plots.append(line_plot(column.heading, series, axes))
    explanation = note(
        "Means over the seeds of every policy from A_0 (SFT) on, bars are one sample standard deviation (SPRec's "
        "Fig. 4 shows the ablations so). Methods without iterations are left out."
    )
    return explanation + _legend(methods) + f'<div class="plots">{"".join(plots)}</div>'


def study_section(data: CompareData, study: str) -> str:
    """Every metric of the table against the value of the setting that the study varies (Fig. 5, 6)."""
    methods = [method for method in data.methods if method.study == study and data.measured(method.label)]
    if not methods:
        return ""
    used = {len(_last(run)) for method in methods for run in data.runs_of(method.label) if run.measured}
    ticks = [(float(place), f"{method.value:g}") for place, method in enumerate(methods)]
    plots = []
    for column in table_columns(data):
        points, errors = [], []
        for place, method in enumerate(methods):
            mean, deviation = spread(_study_values(data, method, column.key))
            points.append((float(place), mean))
            errors.append(deviation)
        series = Series(name=study, points=points, errors=errors, markers=True)
        axes = Axes(width=340, height=210, x_ticks=ticks, x_title=study, y_title=column.unit, from_zero=False)
        plots.append(line_plot(column.heading, [series], axes))
    few = "" if used == {LAST_ITERATIONS} else f" (here {' or '.join(map(str, sorted(used)))}: runs have no more)"
    examples = dict(methods[0].settings).get("selfplay.num_examples")
    size = f" {examples[1]} examples in an iteration." if examples else ""
    explanation = note(
        f"Each value is the mean over the last {LAST_ITERATIONS} iterations{few} of each run, as in the paper, then "
        f"over seeds; bars are one sample standard deviation over seeds.{size} The places on the axis are the values "
        "that were tried, at equal distances."
    )
    return explanation + f'<div class="plots">{"".join(plots)}</div>'


def _study_values(data: CompareData, method: MethodRecord, key: str) -> list[float]:
    """Per finished seed the mean of a metric over the last iterations."""
    runs = [run for run in data.runs_of(method.label) if run.measured is not None]
    return [statistics.fmean(result.metrics.get(key, math.nan) for result in _last(run)) for run in runs if _last(run)]


def _last(run: RunRecord) -> list[EvalResult]:
    """The results of a run's last iterations."""
    return [result for result in run.policies if result.label.startswith("iteration-")][-LAST_ITERATIONS:]


def _num_iterations(data: CompareData, method: MethodRecord) -> int:
    finished = [run for run in data.runs_of(method.label) if run.measured is not None]
    return max((len(run.policies) - 1 for run in finished), default=0)


def _curve_columns(data: CompareData) -> list[Column]:
    """NDCG, then the diversity and over-recommendation at the first and most places that the table shows."""
    shown = [column for column in table_columns(data) if column.name in ("div_ratio", "or_ratio", "mgu")]
    key = accuracy_key(data)
    return [*([column_of(key)] if key else []), *shown]


def _curve(data: CompareData, method: MethodRecord, index: int, column: Column) -> Series:
    runs = [run for run in data.runs_of(method.label) if run.measured is not None]
    points, errors = [], []
    for place in range(_num_iterations(data, method) + 1):
        results = [run.policies[place] for run in runs if place < len(run.policies)]
        mean, deviation = spread([result.metrics.get(column.key, math.nan) for result in results])
        points.append((float(place), mean))
        errors.append(deviation)
    return Series(name=method.label, points=points, errors=errors, markers=True, css=_css(index), radius=2.5)


def _css(index: int) -> str:
    """Four colours, then the same dashed."""
    return f"s{index % NUM_COLOURS} d{index // NUM_COLOURS}"


def _legend(methods: Sequence[MethodRecord]) -> str:
    entries = "".join(
        f'<span><svg class="stroke" viewBox="0 0 30 8"><path class="line {_css(index)}" d="M0 4H30"/></svg>'
        f"{escape(method.label)}</span>"
        for index, method in enumerate(methods)
    )
    return f'<p class="legend">{entries}</p>'
