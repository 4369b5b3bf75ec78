"""The tables of a comparison: methods by metrics, mean and spread over seeds, as HTML, Markdown and rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sprec_ray.reports.compare.published import SPREC_COLUMNS
from sprec_ray.reports.compare.results import CompareData, MethodRecord, Significance, spread
from sprec_ray.reports.markup import escape, note, table, value_text
from sprec_ray.reports.tables import Column, all_columns, column_of, columns, places

LEVEL = 0.05
"""Below which a p value is marked; differences are not corrected for their number."""
BASELINE = "bigrec"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table: a method, or what every run measures beside its policies."""

    label: str
    is_method: bool
    seeds: str
    """How many of the seeds are in, where not all are: ``2 of 3 seeds``."""


def table_columns(data: CompareData) -> list[Column]:
    """The columns of SPRec's Table 1 that were measured; of other tasks those of a run's own table."""
    results = [result for method in data.table_methods for result in data.measured(method.label)]
    if any("hit_ratio@1" in result.metrics for result in results):
        return columns(results)  # candidates have HR and NDCG too, which are not their protocol's figures
    published = [key for key in SPREC_COLUMNS if any(key in result.metrics for result in results)]
    return [column_of(key) for key in published] or columns(results) or all_columns(results)


def more_columns(data: CompareData) -> list[Column]:
    """Every other metric that was measured."""
    results = [result for method in data.table_methods for result in data.measured(method.label)]
    shown = table_columns(data)
    return [column for column in all_columns(results) if column not in shown]


def accuracy_key(data: CompareData) -> str | None:
    """The NDCG at the most places, of pairs the pairwise accuracy; None where neither was measured."""
    results = [result for method in data.table_methods for result in data.measured(method.label)]
    measured = {key for result in results for key in result.metrics}
    ks = [k for k in places(results) if f"ndcg@{k}" in measured]
    if ks:
        return f"ndcg@{ks[-1]}"
    return "pair_accuracy" if "pair_accuracy" in measured else None


def ranked_methods(data: CompareData) -> list[MethodRecord]:
    """The methods that compete for best: language models, or where there are fewer than two, all that learn."""
    models = [method for method in data.table_methods if method.kind == "language model"]
    return models if len(models) > 1 else [method for method in data.table_methods if method.kind != "simple"]


def best_two(data: CompareData, column: Column) -> tuple[str | None, str | None]:
    """The labels of the best and the second best mean, by the column's direction; None without one or a difference.

    Of methods that share a place the first is named.
    """
    order = list(_ordered_means(data, column))
    return (order[0], order[1]) if order else (None, None)


def places_of(data: CompareData, column: Column) -> dict[str, int]:
    """By label 1 for the methods with the best mean and 2 for those with the next; empty without a difference."""
    means = _ordered_means(data, column)
    distinct = list(dict.fromkeys(means.values()))[:2]
    return {label: 1 + distinct.index(mean) for label, mean in means.items() if mean in distinct}


def _ordered_means(data: CompareData, column: Column) -> dict[str, float]:
    """The means of ranked methods by label, best first; empty without a direction or a difference."""
    means = {method.label: spread(data.values(method.label, column.key))[0] for method in ranked_methods(data)}
    sign = 1.0 if column.lower_is_better else -1.0
    order = sorted((label for label in means if not math.isnan(means[label])), key=lambda label: sign * means[label])
    if column.undirected or len(order) < 2 or means[order[0]] == means[order[-1]]:
        return {}
    return {label: means[label] for label in order}


def tested(data: CompareData, method: str, rival: str, key: str) -> Significance | None:
    """What the bootstrap says of a method against a rival."""
    found = (s for s in data.significance if (s.method, s.rival, s.metric) == (method, rival, key))
    return next(found, None)


def marks(data: CompareData, label: str, column: Column) -> str:
    """``▲`` or ``▼`` where a method is better or worse than BIGRec, ``†`` where the best is better than the second."""
    found = ""
    against = tested(data, label, BASELINE, column.key)
    if against is not None and against.p < LEVEL and against.difference:
        found += "▲" if _favours(against, label, column) else "▼"
    best, second = best_two(data, column)
    leading = None
    if label == best and second is not None:  # against BIGRec either may be the first of the two
        leading = tested(data, label, second, column.key) or tested(data, second, label, column.key)
    return found + ("†" if leading is not None and leading.p < LEVEL and _favours(leading, label, column) else "")


def _favours(found: Significance, label: str, column: Column) -> bool:
    """Whether a difference is to a method's favour: the means of the table may be over other seeds."""
    is_higher = found.difference > 0 if found.method == label else found.difference < 0
    return is_higher != column.lower_is_better


def table_rows(data: CompareData) -> list[Row]:
    """The methods with a finished run, then the rules that learn nothing where they are no methods."""
    rows = []
    for method in data.shown_methods:
        done = len(data.measured(method.label))
        total = len(data.seeds)
        rows.append(Row(method.label, True, "" if done == total else f"{done} of {total} seeds"))
    names = {method.name for method in data.table_methods}
    return rows + [Row(label, False, "") for label in data.references() if label not in names]


def row_values(data: CompareData, row: Row, key: str) -> list[float]:
    """A metric of a row, one value per seed."""
    if row.is_method:
        return data.values(row.label, key)
    return [result.metrics[key] for result in data.references()[row.label] if key in result.metrics]


def methods_table(data: CompareData, shown: Sequence[Column]) -> str:
    """Methods by metrics as HTML, the best in bold, the second best underlined."""
    winners = {column: places_of(data, column) for column in shown}
    rows = []
    for row in table_rows(data):
        name = escape(row.label) if row.is_method else f'<span class="muted">{escape(row.label)}</span>'
        if row.seeds:
            name += f' <span class="state failed">{escape(row.seeds)}</span>'
        rows.append([name, *(_html_cell(data, row, column, winners[column]) for column in shown)])
    return table(["method", *(escape(column.heading) for column in shown)], rows, css="dense results")


def _html_cell(data: CompareData, row: Row, column: Column, winners: Mapping[str, int]) -> str:
    mean, deviation = spread(row_values(data, row, column.key))
    text = escape(value_text(mean)) if not math.isnan(mean) or row_values(data, row, column.key) else "–"
    if row.is_method and winners.get(row.label) == 1:
        text = f'<strong class="best">{text}</strong>'
    elif row.is_method and winners.get(row.label) == 2:
        text = f'<span class="second">{text}</span>'
    found = marks(data, row.label, column) if row.is_method else ""
    text += f"<sup>{found}</sup>" if found else ""
    return text + (f'<span class="spread">± {value_text(deviation)}</span>' if not math.isnan(deviation) else "")


def table_legend(data: CompareData) -> str:
    """What the marks of the tables mean, as HTML."""
    return note(" ".join(legend_sentences(data)))


def legend_sentences(data: CompareData) -> Iterable[str]:
    """What the marks of the tables mean."""
    several = len(data.seeds) > 1
    yield (
        f"Means over {len(data.seeds)} seeds, ± is the sample standard deviation over seeds."
        if several
        else "One seed, so there is no spread over seeds."
    )
    ranked = ", ".join(method.label for method in ranked_methods(data) if data.measured(method.label))
    yield (
        f"Each value is that of the run's last policy on the {data.split} rows. The best of {ranked} is bold, the "
        "second best underlined, in the "
        "direction of the arrow; the other rows are for orientation (random titles are diverse and of no use)."
    )
    if data.significance:
        rivals = any(found.rival == BASELINE for found in data.significance)
        yield (
            f"Paired bootstrap over the rows, {data.num_resamples} resamples, all seeds together, p < {LEVEL:g}, not "
            f"corrected for {len(data.significance)} tests: "
            + ("▲ better, ▼ worse than bigrec; " if rivals else "")
            + "† the best is better than the second best. It says what other rows of the same kind would change; the "
            "spread over seeds says what another training would."
        )


def markdown_table(data: CompareData, shown: Sequence[Column]) -> str:
    """The same table as Markdown."""
    lines = [["method", *(column.heading for column in shown)], ["---"] * (len(shown) + 1)]
    winners = {column: places_of(data, column) for column in shown}
    for row in table_rows(data):
        cells = [row.label + (f" ({row.seeds})" if row.seeds else "")]
        for column in shown:
            values = row_values(data, row, column.key)
            mean, deviation = spread(values)
            text = value_text(mean) if values else "–"
            if row.is_method and row.label in winners[column]:
                text = f"**{text}**" if winners[column][row.label] == 1 else f"<u>{text}</u>"
            text += marks(data, row.label, column) if row.is_method else ""
            cells.append(text + (f" ± {value_text(deviation)}" if not math.isnan(deviation) else ""))
        lines.append(cells)
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def comparison_rows(data: CompareData) -> list[dict[str, Any]]:
    """One mapping per run and policy, with the same keys in all, for other programs; a run without results has one.

    Columns: ``method``, ``study`` and its ``value``, ``seed``, ``status``, ``policy``, ``is_last``, every metric,
    processor-seconds and tokens spent and alone, ``error``, ``command``.
    """
    results = [result for run in data.runs for result in run.results]
    metrics = list(dict.fromkeys(key for result in results for key in result.metrics))
    rows = []
    for run in data.runs:
        method = data.method(run.method)
        costs = {f"spent/{key}": value for key, value in _cost(run.spent).items()}
        costs |= {f"alone/{key}": value for key, value in _cost(run.alone).items()}
        for result in run.results or (None,):
            rows.append(
                {
                    "method": run.method,
                    "study": method.study,
                    "value": method.value,
                    "seed": run.seed,
                    "status": run.status,
                    "policy": result.label if result else None,
                    "is_last": result is not None and result is run.measured,
                    **{key: result.metrics.get(key) if result else None for key in metrics},
                    **costs,
                    "error": run.error,
                    "command": run.command,
                }
            )
    return rows


def _cost(cost: Any) -> dict[str, Any]:
    return {key: getattr(cost, key, None) for key in ("cpu_s", "gpu_s", "trained_tokens", "decoded_tokens")}
