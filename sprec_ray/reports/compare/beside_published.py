"""Our numbers beside a paper's."""

from __future__ import annotations

import math

from sprec_ray.reports.compare.published import NAMES, PublishedTable, published_table
from sprec_ray.reports.compare.results import CompareData, spread
from sprec_ray.reports.compare.sentences import agreeing_signs, differences, ordering
from sprec_ray.reports.markup import escape, note, number, table, value_text
from sprec_ray.reports.tables import column_of


def published_section(data: CompareData) -> str:
    """A table of ours above theirs, where each differs from the baseline alike, and how the orders agree."""
    if data.published is None:
        return ""
    published = published_table(data.published)
    keys = [key for key in published.columns if any(data.values(method.label, key) for method in data.table_methods)]
    methods = [method for method in data.shown_methods if method.name in published.numbers]
    if not keys or not methods:
        return ""
    alike = {(label, key): _mark(ours * his) for key in keys for label, ours, his in differences(data, key)}
    rows = []
    for method in methods:
        cells = []
        for key in keys:
            ours, mark = spread(data.values(method.label, key))[0], alike.get((method.label, key), "")
            cells.append(
                f"{'–' if math.isnan(ours) else value_text(ours)}<sup>{mark}</sup>"
                f'<span class="spread">{number(published.numbers[method.name][key])}</span>'
            )
        name = f'{escape(method.label)}<span class="spread">{escape(NAMES[method.name])}</span>'
        rows.append([name, *cells])
    rows.append(["sign as published", *(_share(*agreeing_signs(data, key)) for key in keys)])
    rows.append(["Kendall's tau", *(_tau(ordering(data, key)) for key in keys)])
    headers = ["ours, published below", *(escape(column_of(key).heading) for key in keys)]
    return _protocol(data, published) + table(headers, rows, css="dense results") + _agreement(published)


def _protocol(data: CompareData, published: PublishedTable) -> str:
    """What is not the same in both, so that nobody compares levels."""
    differing = [key for key, _, _ in data.from_paper]
    model = next((f"{ours} instead of {theirs}" for key, ours, theirs in data.from_paper if "name_or_path" in key), "")
    return note(
        f"Published: {published.source}, {published.dataset}, {published.runs}. The "
        + (f"models differ ({model}), and so do " if model else "The following differ: ")
        + f"{len(differing)} settings in all ({', '.join(differing[:8])}{' ...' if len(differing) > 8 else ''}; the "
        "whole list is below). Compare directions and order, not levels."
    )


def _agreement(published: PublishedTable) -> str:
    """What the marks and the last two rows mean."""
    left_out = "".join(f" but {NAMES[name]}" for name in published.unordered)
    return note(
        f"✓ differs from {published.baseline} in the published direction, ✗ in the other; nothing where one of the "
        f"two does not differ. Kendall's tau compares the "
        f"order of all published methods{left_out}: 1 the same, 0 unrelated, -1 reversed; with few methods it moves in "
        "large steps."
    )


def _mark(agreement: float) -> str:
    if not agreement:
        return ""
    return "✓" if agreement > 0 else "✗"


def _share(same: int, total: int) -> str:
    return f"{same} of {total}" if total else "–"


def _tau(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.2f}"
