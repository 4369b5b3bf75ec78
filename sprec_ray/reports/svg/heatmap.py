"""A heat map as inline SVG: every cell says its value, the stronger its colour the better it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sprec_ray.reports.markup import cut, escape, value_text
from sprec_ray.reports.svg.plots import axis_titles, figure

MIN_OPACITY, MAX_OPACITY = 0.04, 0.5
"""Of the colour under a cell's text, which stays readable on both, in light and in dark."""
MIN_CELL_HEIGHT, MIN_CELL_WIDTH, MAX_CELL_WIDTH = 36, 56, 110


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatCell:
    """One cell: its value, or NaN with a ``mark`` that says why there is none."""

    value: float = math.nan
    mark: str = ""
    """A word below the value, or instead of it: ``failed``."""
    hint: str = ""
    chosen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """A table of cells by (row, column); a cell that is left out was not run."""

    title: str
    meaning: str
    """Unit and direction, in words."""
    rows: Sequence[str]
    columns: Sequence[str]
    row_title: str
    column_title: str
    cells: Mapping[tuple[int, int], HeatCell]
    lower_is_better: bool = False
    cell_width: int = MIN_CELL_WIDTH
    """Least width of a cell, in pixels; columns with long names need more."""


def heat_map(data: HeatMap) -> str:
    """The map as a ``figure``, with its colour scale below it."""
    left = 30 + 7 * min(12, max(map(len, data.rows)))
    cell_width = min(MAX_CELL_WIDTH, max(data.cell_width, (340 - left - 6) // len(data.columns)))
    width = max(340, left + cell_width * len(data.columns) + 6)
    height = max(MIN_CELL_HEIGHT, math.ceil((7 * len(data.row_title) + 4) / len(data.rows)))
    bottom = height * len(data.rows) + 4
    values = [cell.value for cell in data.cells.values() if math.isfinite(cell.value)]
    parts = []
    for row, row_name in enumerate(data.rows):
        y = 4 + row * height
        parts.append(
            f'<text class="tick" text-anchor="end" x="{left - 8}" y="{y + height / 2 + 4:g}">'
            f"{escape(cut(row_name, 12))}</text>"
        )
        for column in range(len(data.columns)):
            cell = data.cells.get((row, column), HeatCell(mark="not run"))
            goodness = _goodness(cell.value, values, data.lower_is_better)
            parts.append(_cell(cell, (left + column * cell_width, y), (cell_width, height), goodness))
    parts += [
        f'<text class="tick" text-anchor="middle" x="{left + (column + 0.5) * cell_width:g}" y="{bottom + 15}">'
        f"{escape(cut(name, cell_width // 7))}</text>"
        for column, name in enumerate(data.columns)
    ]
    middle = left + cell_width * len(data.columns) / 2
    parts.append(axis_titles(data.column_title, data.row_title, middle, bottom / 2, bottom + 33))
    return figure(data.title, (width, bottom + 38), "".join(parts), footer=_scale(data, values))


def _cell(cell: HeatCell, place: tuple[int, int], size: tuple[int, int], goodness: float) -> str:
    (x, y), (width, height) = place, size
    defined = math.isfinite(cell.value)
    css = "cell" if defined else "cell empty"
    opacity = f' fill-opacity="{MIN_OPACITY + goodness * (MAX_OPACITY - MIN_OPACITY):.3f}"' if defined else ""
    middle, centre = x + width / 2, y + height / 2
    texts = [value_text(cell.value)] if defined or not cell.mark else []
    texts += [cell.mark] if cell.mark else []
    lines = [
        f'<text class="{"value" if index == 0 and (defined or not cell.mark) else "mark"}" text-anchor="middle" '
        f'x="{middle:g}" y="{centre + 4 + (12 * index - 5 if len(texts) > 1 else 0):g}">{escape(text)}</text>'
        for index, text in enumerate(texts)
    ]
    ring = ""
    if cell.chosen:
        ring = f'<rect class="chosen" x="{x + 2.5:g}" y="{y + 2.5:g}" width="{width - 5:g}" height="{height - 5}"/>'
    return (
        f'<g><title>{escape(cell.hint)}</title><rect class="{css}" x="{x + 1:g}" y="{y + 1}" width="{width - 2:g}" '
        f'height="{height - 2}" rx="2"{opacity}/>{ring}{"".join(lines)}</g>'
    )


def _goodness(value: float, values: Sequence[float], lower_is_better: bool) -> float:
    """0 for the worst value, 1 for the best, 0.5 where all read the same or the value is not finite."""
    if not math.isfinite(value) or value_text(max(values)) == value_text(min(values)):
        return 0.5
    share = (value - min(values)) / (max(values) - min(values))
    return 1 - share if lower_is_better else share


def _scale(data: HeatMap, values: Sequence[float]) -> str:
    """The colours from the worst value to the best, with unit and direction."""
    if not values:
        return f'<p class="scale"><span>no value</span><span>{escape(data.meaning)}</span></p>'
    worst, best = (max(values), min(values)) if data.lower_is_better else (min(values), max(values))
    ends = (
        f'{value_text(worst)}<i class="ramp"></i>{value_text(best)}'
        if value_text(worst) != value_text(best)
        else "all equal"
    )
    return f'<p class="scale"><span>{ends}</span><span>{escape(data.meaning)}</span></p>'
