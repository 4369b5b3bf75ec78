"""Small plots as inline SVG: lines, points, paired bars and a timeline. Colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sprec_ray.reports.markup import cut, escape
from sprec_ray.reports.svg.labels import Point, place_labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line, or points without one. NaN in ``points`` breaks it.

    ``errors`` draws a bar of that half height at each point.
    """

    name: str
    points: Sequence[Point]
    errors: Sequence[float] = ()
    markers: bool = False
    joined: bool = True
    """False draws only the markers."""
    css: str = ""
    """Classes of the line and its markers; empty takes the next of four colours."""
    radius: float = 3.0
    """Of the markers, in pixels."""
    labels: Sequence[str] = ()
    """A text beside each point; empty texts are left out, and those that find no room."""
    hints: Sequence[str] = ()
    """What a pointer over each marker shows; without them name and value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """Size and decoration of a line plot, in pixels of its own coordinate system."""

    width: int = 300
    height: int = 170
    x_ticks: Sequence[tuple[float, str]] = ()
    separators: Sequence[float] = ()
    """Vertical lines, between the phases of a run."""
    references: Sequence[tuple[str, float]] = ()
    """Dashed horizontal lines with a name: baselines."""
    from_zero: bool = True
    x_title: str = ""
    y_title: str = ""
    legend: bool = True
    """Whether the names of two or more series are shown; a series without a name never is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar of a timeline, in seconds."""

    css: str
    start_s: float
    duration_s: float
    hint: str = field(default="")


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round numbers that cover ``low`` to ``high``.

    >>> ticks(0.0, 0.07)
    [0.0, 0.02, 0.04, 0.06, 0.08]
    """
    if not high > low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def number_ticks(values: Sequence[float]) -> list[tuple[float, str]]:
    """Labelled ticks for an x axis that covers the finite values; none without any."""
    finite = [value for value in values if math.isfinite(value)]
    return [(value, f"{value:g}") for value in ticks(*_widened(min(finite), max(finite)), 6)] if finite else []


def line_plot(title: str, series: Sequence[Series], axes: Axes) -> str:
    """A titled line plot as a ``figure`` element; without a finite point, an empty string."""
    finite = [point for line in series for point in line.points if math.isfinite(point[1])]
    if not finite:
        return ""
    y_ticks = ticks(*_value_range(series, axes))
    left, right = (60 if axes.y_title else 44), axes.width - (64 if axes.references else 10)
    top, bottom = 10, axes.height - (42 if axes.x_title else 24)
    xs = [x for line in series for x, _ in line.points] + [x for x, _ in axes.x_ticks]
    x_low, x_high = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 1, max(xs) + 1)
    inset = 12 if any(line.markers for line in series) else 0

    def place(x: float, y: float) -> Point:
        return (
            left + inset + (x - x_low) / (x_high - x_low) * (right - left - 2 * inset),
            bottom - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - top),
        )

    parts = [_grid(y_ticks, place, left, right)]
    parts += [
        f'<line class="separator" x1="{place(x, 0)[0]:.1f}" x2="{place(x, 0)[0]:.1f}" y1="{top}" y2="{bottom}"/>'
        for x in axes.separators
    ]
    parts += [
        f'<text class="tick" text-anchor="middle" x="{place(x, 0)[0]:.1f}" y="{bottom + 16}">{escape(label)}</text>'
        for x, label in axes.x_ticks
    ]
    parts += [axis_titles(axes.x_title, axes.y_title, (left + right) / 2, (top + bottom) / 2, axes.height - 4)]
    parts += _references(axes.references, place, left, right)
    parts += [_line(line, index, place) for index, line in enumerate(series)]
    placed = [(*place(*point), text) for line in series for point, text in _labelled(line)]
    if placed:
        drawn = [[place(*point) for point in line.points if math.isfinite(point[1])] for line in series]
        paths = [points for line, points in zip(series, drawn, strict=True) if line.joined]
        dots = [point for line, points in zip(series, drawn, strict=True) if line.markers for point in points]
        parts += place_labels(placed, dots, paths, box=(left, top, right, bottom))
    legend = [(_css(line, index), line.name) for index, line in enumerate(series) if line.name and axes.legend]
    return figure(title, (axes.width, axes.height), "".join(parts), legend=legend)


def paired_bars(title: str, names: tuple[str, str], rows: Sequence[tuple[str, float, float]]) -> str:
    """Two horizontal bars per row around a common zero, as a ``figure``: before (paler) and after."""
    values = [value for _, *pair in rows for value in pair if math.isfinite(value)]
    if not values:
        return ""
    x_ticks = ticks(min(0.0, *values), max(0.0, *values), 5)
    width, left, row_height = 860, 250, 30
    height = len(rows) * row_height + 26

    def place(value: float) -> float:
        return left + (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (width - left - 20)

    parts = [
        f'<line class="{"axis" if value == 0 else "grid"}" x1="{place(value):.1f}" x2="{place(value):.1f}" y1="0" '
        f'y2="{height - 22}"/><text class="tick" text-anchor="middle" x="{place(value):.1f}" y="{height - 8}">'
        f"{f'{value:+g}' if value else '0'}</text>"
        for value in x_ticks
    ]
    for index, (label, *pair) in enumerate(rows):
        y = index * row_height
        parts.append(
            f'<text class="name" text-anchor="end" x="{left - 12}" y="{y + 18}">{escape(cut(label, 40))}</text>'
        )
        for offset, (css, value) in enumerate(zip(("bar before", "bar after"), pair, strict=True)):
            if math.isfinite(value):
                x, span = min(place(0), place(value)), abs(place(value) - place(0))
                parts.append(
                    f'<rect class="{css}" x="{x:.1f}" y="{y + 4 + 11 * offset}" width="{max(span, 0.5):.1f}" '
                    f'height="10" rx="1"><title>{escape(label)}: {value:+.4f}</title></rect>'
                )
    legend = list(zip(("before", "after"), names, strict=True))
    return figure(title, (width, height), "".join(parts), legend=legend)


def timeline(lanes: Sequence[tuple[str, Sequence[Bar]]], total_s: float, *, left: int = 190) -> str:
    """One row per lane with its bars from 0 to ``total_s`` seconds, as a ``figure``; names take ``left`` pixels."""
    if not lanes or total_s <= 0:
        return ""
    width, row_height = 960, 20
    height = len(lanes) * row_height + 24
    marks = [value for value in ticks(0.0, total_s, 8) if value <= total_s]

    def place(value: float) -> float:
        return left + value / total_s * (width - left - 24)

    parts = [
        f'<line class="grid" x1="{place(value):.1f}" x2="{place(value):.1f}" y1="0" y2="{height - 20}"/>'
        f'<text class="tick" text-anchor="middle" x="{place(value):.1f}" y="{height - 6}">{value:g} s</text>'
        for value in marks
    ]
    for index, (label, bars) in enumerate(lanes):
        y, shown = index * row_height, escape(cut(label, (left - 10) // 7))
        parts.append(f'<text class="name" text-anchor="end" x="{left - 10}" y="{y + 14}">{shown}</text>')
        parts += [
            f'<rect class="{escape(bar.css)}" x="{place(bar.start_s):.1f}" y="{y + 4}" height="13" rx="1.5" '
            f'width="{max(bar.duration_s / total_s * (width - left - 24), 1):.1f}">'
            f"<title>{escape(bar.hint)}</title></rect>"
            for bar in bars
        ]
    return figure("", (width, height), "".join(parts))


def axis_titles(x_title: str, y_title: str, x: float, y: float, baseline: float) -> str:
    """The axes' names: one centred at ``x`` on ``baseline``, one upright at the left edge, centred at ``y``."""
    parts = []
    if x_title:
        parts.append(f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{baseline:.1f}">{escape(x_title)}</text>')
    if y_title:
        parts.append(
            f'<text class="tick" text-anchor="middle" transform="rotate(-90 11 {y:.1f})" x="11" y="{y:.1f}">'
            f"{escape(y_title)}</text>"
        )
    return "".join(parts)


def _value_range(series: Sequence[Series], axes: Axes) -> tuple[float, float]:
    values = [value for _, value in axes.references if math.isfinite(value)]
    for line in series:
        errors = line.errors or [0.0] * len(line.points)
        for (_, y), error in zip(line.points, errors, strict=True):
            if math.isfinite(y):
                half = error if math.isfinite(error) else 0.0
                values += [y - half, y + half]
    low, high = min(values), max(values)
    return (min(0.0, low), max(0.0, high)) if axes.from_zero else _widened(low, high)


def _widened(low: float, high: float) -> Point:
    """A range that is a single value, or next to it, with room on both sides."""
    room = 0.02 * max(abs(low), abs(high)) or 0.01
    return (low, high) if high - low > 1e-6 * room else (low - room, high + room)


def _grid(y_ticks: Sequence[float], place: Callable[[float, float], Point], left: int, right: int) -> str:
    parts = []
    for value in y_ticks:
        y = place(0, value)[1]
        css = "axis" if value == 0 else "grid"
        parts.append(
            f'<line class="{css}" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" text-anchor="end" x="{left - 6}" y="{y + 3.5:.1f}">{value:g}</text>'
        )
    return "".join(parts)


def _references(
    references: Sequence[tuple[str, float]], place: Callable[[float, float], Point], left: int, right: int
) -> list[str]:
    """Dashed lines from the top down, their names to the right of the plot, moved apart where they would touch."""
    parts = []
    label_y = -math.inf
    for name, value in sorted(references, key=lambda reference: -reference[1]):
        y = place(0, value)[1]
        label_y = max(y + 3.5, label_y + 11)
        parts.append(
            f'<line class="reference" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{right + 5}" y="{label_y:.1f}">{escape(cut(name, 11))}</text>'
        )
    return parts


def _line(line: Series, index: int, place: Callable[[float, float], Point]) -> str:
    css = _css(line, index)
    commands, pen = [], "M"
    marks = []
    for position, (x, y) in enumerate(line.points):
        if not math.isfinite(y):
            pen = "M"
            continue
        px, py = place(x, y)
        commands.append(f"{pen}{px:.1f} {py:.1f}")
        pen = "L"
        if line.errors and math.isfinite(line.errors[position]):
            low, high = place(x, y - line.errors[position])[1], place(x, y + line.errors[position])[1]
            marks.append(f'<line class="error {css}" x1="{px:.1f}" x2="{px:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        if line.markers:
            hint = escape(line.hints[position] if line.hints else f"{line.name}: {y:.4f}")
            place_and_size = f'cx="{px:.1f}" cy="{py:.1f}" r="{line.radius:g}"'
            marks.append(f'<circle class="dot {css}" {place_and_size}><title>{hint}</title></circle>')
    path = f'<path class="line {css}" d="{" ".join(commands)}"/>' if line.joined else ""
    return path + "".join(marks)


def _labelled(line: Series) -> list[tuple[Point, str]]:
    pairs = zip(line.points, line.labels, strict=True) if line.labels else ()
    return [(point, text) for point, text in pairs if text and math.isfinite(point[1])]


def _css(line: Series, index: int) -> str:
    return line.css or f"s{index % 4}"


def figure(
    title: str, size: tuple[int, int], content: str, *, legend: Sequence[tuple[str, str]] = (), footer: str = ""
) -> str:
    """A drawing of ``size`` pixels below its title, with HTML below it.

    ``legend`` holds pairs of classes and name; it is shown when there are two or more.
    """
    entries = "".join(f'<span><i class="swatch {css}"></i>{escape(name)}</span>' for css, name in legend)
    shown = f'<span class="legend">{entries}</span>' if len(legend) > 1 else ""
    caption = f"<figcaption>{escape(title)}{shown}</figcaption>" if title or shown else ""
    return (
        f'<figure>{caption}<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(title)}">{content}'
        f"</svg>{footer}</figure>"
    )
