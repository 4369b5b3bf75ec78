"""Texts beside points, placed so that none covers another or a point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from sprec_ray.reports.markup import escape

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

CHAR_WIDTH, END_WIDTH = 6.6, 3.0
"""Generous for the 10.5 pixel text of ``svg .tick``."""
ASCENT, DESCENT = 8.0, 3.0
DOT_RADIUS = 6.0
STRIDE = 4.0
"""Less than a text is high, so that none slips between two points of a path."""


def place_labels(
    labels: Sequence[tuple[float, float, str]], dots: Sequence[Point], paths: Sequence[Sequence[Point]], *, box: Box
) -> list[str]:
    """SVG texts beside their points ``(x, y, text)`` within ``box``; a text that finds no room is left out.

    No text covers a dot, a path or another text. The first labels are placed first: put the important ones there.
    """
    taken: list[Box] = [(x - DOT_RADIUS, y - DOT_RADIUS, x + DOT_RADIUS, y + DOT_RADIUS) for x, y in dots]
    taken += [(x - 1, y - 1, x + 1, y + 1) for path in paths for x, y in _along(path)]
    parts = []
    for x, y, text in labels:
        width = CHAR_WIDTH * len(text) + END_WIDTH
        for left, baseline in _candidates(x, y, width):
            area = (left - 2, baseline - ASCENT, left + width + 2, baseline + DESCENT)
            inside = area[0] >= box[0] and area[1] >= box[1] and area[2] <= box[2] and area[3] <= box[3]
            if inside and not any(_overlap(area, other) for other in taken):
                taken.append(area)
                parts.append(f'<text class="tick label" x="{left:.1f}" y="{baseline:.1f}">{escape(text)}</text>')
                break
    return parts


def _candidates(x: float, y: float, width: float) -> list[Point]:
    """Right, left, above, below, then the corners; then the same further away."""
    places = []
    for gap in (9.0, 17.0):
        right, left, middle = x + gap, x - gap - width, x - width / 2
        above, below, level = y - gap, y + gap + ASCENT - 2, y + 3.5
        places += [(right, level), (left, level), (middle, above), (middle, below)]
        places += [(right, above), (left, above), (right, below), (left, below)]
    return places


def _along(path: Sequence[Point]) -> Iterator[Point]:
    """Points of a path, at most STRIDE pixels apart."""
    for (x, y), (to_x, to_y) in pairwise(path):
        count = max(1, math.ceil(math.hypot(to_x - x, to_y - y) / STRIDE))
        yield from ((x + (to_x - x) * step / count, y + (to_y - y) * step / count) for step in range(count + 1))


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
