"""Where the time of a run goes: spans written as they end, read back for the report."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMELINE = "timeline.jsonl"
KINDS = ("launch", "load", "compute", "decode", "evaluate")
"""What time is spent on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of a stage. Times are seconds since the run started."""

    name: str
    """The stage, for example ``iteration-0/sft``; spans of one name share a line."""
    kind: str
    """One of ``KINDS``."""
    start_s: float
    duration_s: float


class Clock:
    """The timeline of a run: every span that is over is a line of a file, so that a crash loses none."""

    def __init__(self, folder: Path) -> None:
        self._path, self._lock = folder / TIMELINE, threading.Lock()

    def add(self, name: str, kind: str, start: float, duration: float) -> None:
        """Keep a span; ``start`` and ``duration`` are seconds, ``start`` since the epoch."""
        line = json.dumps({"name": name, "kind": kind, "start": start, "duration": duration})
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    @contextmanager
    def span(self, name: str, kind: str) -> Iterator[None]:
        """Time the block."""
        start = time.time()
        try:
            yield
        finally:
            self.add(name, kind, start, time.time() - start)


def first_start(folder: Path) -> float:
    """When the run began, in seconds since the epoch; now when nothing has run."""
    return min((span["start"] for span in span_rows(folder)), default=time.time())


def span_rows(folder: Path) -> list[dict[str, Any]]:
    """The spans as they were written: ``name``, ``kind``, ``start`` and ``duration`` in seconds since the epoch."""
    path = folder / TIMELINE
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.split("\n") if line.endswith("}")]  # a crash may cut the last line


def read_timeline(folder: Path) -> tuple[Span, ...]:
    """The spans relative to the first, with the pauses between interrupted sessions cut out."""
    spans, shift, end = [], first_start(folder), 0.0
    for row in sorted(span_rows(folder), key=lambda row: row["start"]):
        start = row["start"] - shift
        if start > end + 60:
            shift, start = shift + start - end, end
        spans.append(Span(name=row["name"], kind=row["kind"], start_s=start, duration_s=row["duration"]))
        end = max(end, start + row["duration"])
    return tuple(spans)


def own_spans(folder: Path) -> list[Span]:
    """The spans of ``read_timeline``, each second in one of them.

    A span of decoding holds the swap to its adapter, which has a span of its own, and the first of an engine also the
    wait for its launch.
    """
    spans = read_timeline(folder)
    launches = [span for span in spans if span.kind == "launch" and span.name == "decoders"]
    return [
        dataclasses.replace(span, duration_s=span.duration_s - sum(_overlap(span, launch) for launch in launches))
        if span.kind == "decode"
        else span
        for span in spans
        if not span.name.endswith(": swap")
    ]


def _overlap(first: Span, second: Span) -> float:
    """Seconds that two spans have in common."""
    end = min(first.start_s + first.duration_s, second.start_s + second.duration_s)
    return max(0.0, end - max(first.start_s, second.start_s))
