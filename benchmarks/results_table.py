"""Mean and spread over seeds of finished runs, as a Markdown table.

``python benchmarks/results_table.py LABEL:STAGE=RUN[,RUN...] ... [--file results-valid.json]``, for example
``SPRec:iteration-2=runs/sprec-0,runs/sprec-1``. A cell is the mean over the runs and their sample standard deviation.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

METRICS = {
    "hr@5": "HR@5",
    "ndcg@5": "NDCG@5",
    "div_ratio@1": "DivRatio@1",
    "div_ratio@5": "DivRatio@5",
    "or_ratio@1": "ORRatio@1",
    "or_ratio@5": "ORRatio@5",
    "mgu@1": "MGU@1",
    "mgu@5": "MGU@5",
    "valid": "valid",
    "distinct_valid": "distinct valid / rows",
}


def main() -> None:
    """Print one row per argument."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--file", default="results.json")
    options = parser.parse_args()
    print("| policy | " + " | ".join(METRICS.values()) + " |")
    print("|---" * (len(METRICS) + 1) + "|")
    for argument in options.rows:
        name, _, folders = argument.partition("=")
        label, _, stage = name.partition(":")
        runs = [read_metrics(Path(folder), stage, options.file) for folder in folders.split(",")]
        print(
            f"| {label} | " + " | ".join(cell([run.get(metric, math.nan) for run in runs]) for metric in METRICS) + " |"
        )


def read_metrics(folder: Path, stage: str, file: str) -> dict[str, float | None]:
    """The metrics of one stage of one run, and the distinct valid titles per row."""
    results: list[dict[str, Any]] = json.loads((folder / file).read_text())["results"]
    result = next(result for result in results if result["label"] == stage)
    distinct = result["counts"].get("num_distinct_valid", math.nan)
    return {**result["metrics"], "distinct_valid": distinct / result["counts"]["num_rows"]}


def cell(values: list[float | None]) -> str:
    """``mean ± standard deviation``, the value of a single run, or a dash where nothing was measured."""
    numbers = [value for value in values if value is not None and not math.isnan(value)]
    if not numbers:
        return "–"
    spread = f" ± {statistics.stdev(numbers):.4f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.4f}{spread}"


if __name__ == "__main__":
    main()
