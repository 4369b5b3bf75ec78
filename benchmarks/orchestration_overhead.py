"""What an iteration costs besides computing: ``python benchmarks/orchestration_overhead.py runs/demo [more runs]``.

From a finished run's ``timeline.jsonl``. An iteration lasts from the end of the training before it to the end of its
own training. Its overhead is that time without the union of all spans of training, decoding and evaluation: loading
models, handing over files, waiting. The first iteration also launches what the run needs, so it is told apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sprec_ray.storage.timeline import span_rows

WORK = ("compute", "decode", "evaluate")


def covered_s(spans: Iterable[tuple[float, float]], start: float, end: float) -> float:
    """Seconds of [start, end] that lie in at least one span.

    >>> covered_s([(0, 2), (1, 3), (5, 9)], 1, 6)
    3.0
    """
    covered, reached = 0.0, start
    for begin, finish in sorted(spans):
        covered += max(0.0, min(finish, end) - max(begin, reached))
        reached = max(reached, min(finish, end))
    return covered


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """One row per iteration: its wall time, what of it was work, what was loading, and the rest, in seconds."""
    spans = span_rows(folder)
    ends: dict[int, float] = {}
    for span in spans:
        if span["kind"] == "compute" and (span["name"] == "sft" or span["name"].startswith("iteration ")):
            number = -1 if span["name"] == "sft" else int(span["name"].split()[1].rstrip(":"))
            ends[number] = max(ends.get(number, 0.0), span["start"] + span["duration"])
    rows = []
    for iteration in sorted(ends.keys() - {-1}):
        start, end = ends[iteration - 1], ends[iteration]

        def within(kinds: tuple[str, ...], start: float = start, end: float = end) -> float:
            chosen = ((span["start"], span["start"] + span["duration"]) for span in spans if span["kind"] in kinds)
            return covered_s(chosen, start, end)

        work = within(WORK)
        load = within((*WORK, "load")) - work
        rows.append(
            {
                "run": folder.name,
                "iteration": iteration,
                "wall": end - start,
                "work": work,
                "load": load,
                "other": end - start - work - load,
            }
        )
    return rows


def main() -> None:
    """Print the table of all iterations, and the largest overhead after the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    rows = [row for folder in parser.parse_args().runs for row in rows_of(folder)]
    print("| run | iteration | wall s | compute, decode, evaluate s | loading s | other s | overhead s |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['run']} | {row['iteration']} | {row['wall']:.1f} | {row['work']:.1f} | {row['load']:.1f} "
            f"| {row['other']:.1f} | {row['load'] + row['other']:.1f} |"
        )
    later = [row["load"] + row["other"] for row in rows if row["iteration"]]
    if later:
        print(f"\nLargest overhead of an iteration after the first: {max(later):.1f} s")


if __name__ == "__main__":
    main()
