"""A whole run: checks before anything expensive, Ray, the loop, results and report."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import yaml

from sprec_ray.cluster.engines.kept import KeptEngines
from sprec_ray.cluster.runs.checks import check_paths
from sprec_ray.cluster.runs.connection import init_ray as _init_ray
from sprec_ray.cluster.runs.resources import check_resources, num_cpus
from sprec_ray.cluster.runs.results import read_results, write_results, write_results_of
from sprec_ray.cluster.stages.collaborative import RECOMMENDER
from sprec_ray.cluster.stages.pair_pipeline import PairStages
from sprec_ray.cluster.stages.pipeline import RayStages
from sprec_ray.cluster.stages.run_data import Split
from sprec_ray.config.addresses import is_remote, without_options
from sprec_ray.config.load import config_to_dict, flatten, read_yaml
from sprec_ray.config.run import ConfigError, RunConfig
from sprec_ray.storage.artifacts import (
    MARKER,
    ArtifactError,
    Stage,
    locked,
    read_json,
    remove_unfinished_writes,
    write_text,
)
from sprec_ray.storage.mirror import open_mirror, working_folder
from sprec_ray.types import EvalResult

logger = logging.getLogger(__name__)

LOCK = ".lock"

MAY_CHANGE = (
    "selfplay.num_iterations",
    "output_dir",
    "share_stages",
    *(f"{phase}.micro_batch_size" for phase in ("sft", "selfplay_sft", "preference")),
    *(
        f"training.{key}"
        for key in (
            *("num_workers", "cpus_per_worker", "gpus_per_worker", "num_threads", "zero_stage"),
            *("gradient_checkpointing", "save_steps", "max_failures"),
        )
    ),
    *(
        f"decoding.{key}"
        for key in (
            *("placement", "num_decoders", "cpus_per_decoder", "gpus_per_decoder", "tensor_parallel_size"),
            *("chunk_size", "gpu_memory_utilization", "kv_cache_gib", "search_cache_gib"),
        )
    ),
)
"""Settings that a run may be continued with; they change how it runs or how long, not what it is.

Another number of workers changes the order of summation, and with it the last digits.
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """What a finished run leaves: its results in order, baselines last, and where the report is."""

    results: tuple[EvalResult, ...]
    report: Path
    """In the working folder of this machine."""
    address: str
    """Where users find the report: the same file, or the one at the address that ``output_dir`` is."""
    was_finished: bool
    """True when there was nothing left to do."""


def train_selfplay(config: RunConfig, *, kept: KeptEngines | None = None, command: str | None = None) -> RunOutcome:
    """Run, or continue, what the configuration describes; every finished stage is kept.

    ``kept`` are engines that outlive the run, for the next one of this process; ``command`` is what the report shows
    instead of this process's own.

    Raises ConfigError for settings that cannot run, ArtifactError for a damaged run directory, ValueError for data.
    """
    with open_run(config) as folder:
        report = folder / "report.html"
        address = address_of(config, "report.html")
        if is_finished(config, folder):
            return RunOutcome(results=read_results(folder), report=report, address=address, was_finished=True)
        with open_stages(config, folder, kept=kept) as stages:
            stages.prepare()
            results = stages.run()
            engines = stages.engine_names()
        write_results(config, folder, results, engines=engines, command=command)
        return RunOutcome(results=tuple(results), report=report, address=address, was_finished=False)


def evaluate_on_valid(config: RunConfig, *, kept: KeptEngines | None = None) -> tuple[EvalResult, ...]:
    """The metrics of a finished run's policies on its validation rows, kept in results-valid.json.

    ``kept`` as of ``train_selfplay``.

    Raises ConfigError when the run is not finished.
    """
    if not is_remote(config.output_dir) and not run_folder(config).is_dir():
        raise ConfigError(f"{run_folder(config)} does not exist; run jobs.train_selfplay with the same arguments first")
    with open_run(config) as folder:
        if not is_finished(config, folder):
            raise ConfigError(f"{folder} is not finished; run jobs.train_selfplay with the same arguments first")
        with open_stages(config, folder, split="valid", kept=kept) as stages:
            results = stages.run()
        write_results_of("valid", folder, results)
        return tuple(results)


def prepare_run(config: RunConfig) -> tuple[Path, dict[str, int]]:
    """Make the data of a run and nothing else; returns its folder and the counts. The run continues from it."""
    with open_run(config) as folder, open_stages(config, folder) as stages:
        stages.prepare()
        return folder / "data", read_json(folder / "data" / "counts.json")


def export_scores(config: RunConfig) -> Path:
    """The folder of a collaborative model's scores of all rows and titles; the model is trained where it is not yet.

    Raises ConfigError for pairs of titles, whose histories are not those of a next title.
    """
    if config.data.task == "pairs":
        raise ConfigError("data.task=pairs has no scores of a whole catalogue; set data.task=next_item")
    with open_run(config) as folder, open_stages(config, folder) as stages:
        assert isinstance(stages, RayStages)
        stages.prepare()
        return stages.collaborative.export()


@contextmanager
def ray_for(configs: Sequence[RunConfig]) -> Iterator[None]:
    """A connection to Ray inside the block, for several runs, once each of them is known to find its files."""
    for config in configs:
        check_paths(config)
    reserving = {(config.training, config.decoding): config for config in configs}
    largest_first = sorted(reserving.values(), key=lambda config: -num_cpus(config))
    started_here = _connect(largest_first[0])
    for config in largest_first[1:]:
        _connect(config)  # checks what it reserves
    try:
        yield
    finally:
        if started_here:
            ray.shutdown()


@contextmanager
def open_run(config: RunConfig) -> Iterator[Path]:
    """The folder of a new run, or of the same run to continue, checked before anything expensive starts.

    It is locked inside the block: two processes in one run would destroy each other's stages.
    """
    check_paths(config)
    folder = run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    refusal = f"another process is running {folder}; wait for it or choose another name="
    with locked(folder / LOCK, refusal=refusal), open_mirror(config.output_dir).opened(config.name):
        check_same_run(config, folder)
        remove_unfinished_writes(folder)
        _check_whole(folder)
        write_text(folder / "config.yaml", yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True))
        yield folder


@contextmanager
def open_stages(
    config: RunConfig, folder: Path, *, split: Split = "test", kept: KeptEngines | None = None
) -> Iterator[RayStages | PairStages]:
    """The stages of a run on a cluster that runs already or is started for them."""
    kind = PairStages if config.data.task == "pairs" else RayStages
    stages = kind(config, folder, split=split, kept=kept)
    with stages.clock.span("ray", "launch"):
        started_here = _connect(config)
    try:
        yield stages
    finally:
        stages.close()
        if started_here:
            ray.shutdown()


def run_folder(config: RunConfig) -> Path:
    """The run's absolute folder on this machine; of an address it is a mirror.

    A Ray job's working directory is temporary: a relative ``output_dir`` is under the home directory there.
    """
    return (working_folder(config.output_dir) / config.name).resolve()


def address_of(config: RunConfig, file: str) -> str:
    """Where users find a file or folder of a run: on this machine, or at the address that ``output_dir`` is."""
    if is_remote(config.output_dir):
        return f"{without_options(config.output_dir)}/{config.name}/{file}"
    return str(run_folder(config) / file)


def check_same_run(config: RunConfig, folder: Path) -> None:
    """A run is continued only with the settings it was started with."""
    kept = folder / "config.yaml"
    if not kept.is_file():
        if any(file.name != LOCK for file in folder.iterdir()):
            raise ArtifactError(f"{folder} holds files but no config.yaml; choose another name= or delete it")
        return
    if not any(folder.rglob(MARKER)):
        return  # settings that were refused before a stage was finished
    try:
        before = flatten(read_yaml(kept))
    except ConfigError as error:
        raise ArtifactError(f"{error}; choose another name= or delete {folder}") from None
    if not before:
        raise ArtifactError(f"{kept} is empty; choose another name= or delete {folder}")
    check_same_settings(folder, before, flatten(config_to_dict(config)))


def check_same_settings(
    folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], *, may_change: Container[str] = MAY_CHANGE
) -> None:
    """Raise ConfigError when a setting of what ``folder`` was made with has changed, but for those that may.

    A setting that did not exist then had its default.
    """
    before = {**flatten(config_to_dict(RunConfig())), **before}
    for key in sorted(before.keys() | now.keys()):
        if key not in may_change and before.get(key) != now.get(key):
            raise ConfigError(
                f"{folder} was made with {key}={before.get(key)}, not {now.get(key)}; choose another name= or delete it"
            )


def _labels(config: RunConfig) -> list[str]:
    if config.recommender == "collaborative":
        return [RECOMMENDER]
    base = ["base"] if config.evaluation.base else []
    return [*base, "sft", *(f"iteration-{iteration}" for iteration in range(config.selfplay.num_iterations))]


def is_finished(config: RunConfig, folder: Path) -> bool:
    """Whether nothing is left to do of a run."""
    stages = [folder / "data", *(folder / "evaluations" / label for label in _labels(config))]
    if not (folder / "results.json").is_file() or not (folder / "report.html").is_file():
        return False
    measured = {result.label for result in read_results(folder)}
    return measured >= set(_labels(config)) and all(Stage(path).is_finished for path in stages)


def _check_whole(folder: Path) -> None:
    """Raise ArtifactError when a finished stage has lost a file, before anything is built on it."""
    for marker in sorted(folder.rglob(MARKER)):
        assert Stage(marker.parent).is_finished


def _connect(config: RunConfig) -> bool:
    """Connect to a running cluster or start a local one; returns whether it was started here."""
    started = not ray.is_initialized() and _init_ray(num_cpus=max(os.cpu_count() or 1, int(num_cpus(config)) + 1))
    check_resources(config)
    return started
