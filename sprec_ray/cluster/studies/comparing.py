"""A comparison: runs of several methods and seeds that share stages, never more at a time than fit the cluster."""

from __future__ import annotations

import dataclasses
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.tune
import yaml

from sprec_ray.cluster.engines.kept import KeptEngines
from sprec_ray.cluster.runs.results import versions, write_results_of
from sprec_ray.cluster.runs.run import (
    LOCK,
    check_same_run,
    open_run,
    open_stages,
    prepare_run,
    ray_for,
    run_folder,
    train_selfplay,
)
from sprec_ray.cluster.studies.capacity import num_trials_at_a_time
from sprec_ray.cluster.studies.compare_records import adopted_costs, method_record, pretraining_cost, run_record
from sprec_ray.cluster.studies.trials import link_cache, one_line, read_error, run_trials
from sprec_ray.config.compare import CompareConfig, chosen_methods, comparison_to_dict, dataset_config, planned_runs
from sprec_ray.config.load import config_to_dict, flatten
from sprec_ray.config.run import ConfigError
from sprec_ray.config.sweep import Trial
from sprec_ray.reports.compare.differences import bootstrap_differences
from sprec_ray.reports.compare.notes import comparison_notes
from sprec_ray.reports.compare.page import PAGE_FILE, write_compare_report
from sprec_ray.reports.compare.published import PUBLISHED, published_table
from sprec_ray.reports.compare.results import (
    COMPARE_FILE,
    CompareData,
    Cost,
    RunRecord,
    Significance,
    Status,
    read_comparison,
)
from sprec_ray.reports.paper import differences_from_paper
from sprec_ray.storage.artifacts import locked, write_text
from sprec_ray.types import EvalResult

logger = logging.getLogger(__name__)

RUNS = "runs"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CompareOutcome:
    """What a comparison leaves: its records and its page."""

    data: CompareData
    report: Path

    @property
    def num_failed(self) -> int:
        """Runs that ended with an error; the same command tries them again."""
        return sum(run.status == "failed" for run in self.data.runs)


@dataclasses.dataclass(frozen=True, slots=True)
class ComparisonPlan:
    """The runs by name. On the test rows each is a whole run with a report of its own."""

    runs: Mapping[str, Trial]
    commands: Mapping[str, str]
    """By name what repeats a run alone."""
    split: str

    def trial(self, parameters: Mapping[str, Any]) -> Trial:
        """The run of that name."""
        return self.runs[parameters["run"]]

    def run(self, trial: Trial, kept: KeptEngines, tell: Callable[[EvalResult], None]) -> None:
        """Do the run; nothing is decided on before its end."""
        if self.split == "test":
            train_selfplay(trial.config, kept=kept, command=self.commands[trial.name])
            return
        with open_run(trial.config) as folder, open_stages(trial.config, folder, split="valid", kept=kept) as stages:
            stages.prepare()
            write_results_of(self.split, folder, stages.run())


def compare_methods(comparison: CompareConfig) -> CompareOutcome:
    """Run, or continue, a comparison. Finished runs are read from disk, unfinished ones go on after their last stage.

    Raises ConfigError for settings that cannot run, before Ray starts. A run that fails ends no other; one that the
    data cannot serve fails before anything is trained.
    """
    place = dataclasses.replace(
        dataset_config(comparison), output_dir=comparison.output_dir, name=comparison.name, share_stages=True
    )
    folder = run_folder(place)
    if (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} is a run, not a comparison; choose another name=")
    for sentence in comparison_notes(comparison):
        logger.warning("%s", sentence)
    with _opened(comparison, folder):
        progress = ComparisonProgress(comparison, folder)
        for run in progress.runs.values():
            if (folder / RUNS / run.name).is_dir():
                check_same_run(run.config, folder / RUNS / run.name)
        if not progress.left:
            return CompareOutcome(data=progress.write(is_over=True), report=folder / PAGE_FILE)
        with ray_for([run.config for run in progress.left]):
            left = _able(progress)
            if left:
                run_trials(
                    ComparisonPlan({run.name: run for run in left}, progress.commands, comparison.split),
                    ray.tune.grid_search([{"run": run.name} for run in left]),
                    folder=folder,
                    callbacks=[progress],
                    at_a_time=num_trials_at_a_time([run.config for run in left], comparison.max_concurrent_trials),
                    max_failures=comparison.max_failures,
                    search={},
                )
        return CompareOutcome(data=progress.write(is_over=True), report=folder / PAGE_FILE)


class ComparisonProgress(ray.tune.Callback):  # type: ignore[misc]
    """Keeps the page of a comparison as far as it has come, and logs every run that ends."""

    def __init__(self, comparison: CompareConfig, folder: Path) -> None:
        self._comparison, self._folder = comparison, folder
        self._methods = {method.label: method for method in chosen_methods(comparison)}
        self._notes = tuple(comparison_notes(comparison))
        self._about = tuple(method_record(comparison, method) for method in self._methods.values())
        self.runs = {run.name: _placed(run, folder) for run in planned_runs(comparison)}
        """All runs, by name."""
        self._records = {name: self._record(name, "unfinished") for name in self.runs}
        before = self._before = read_comparison(folder) if (folder / COMPARE_FILE).is_file() else None
        self._started = before.started if before else time.strftime("%Y-%m-%d %H:%M")
        self._earlier_s = before.total_s if before else 0.0
        self._start: float | None = None

    @property
    def left(self) -> list[Trial]:
        """The runs that are not finished."""
        return [self.runs[name] for name, record in self._records.items() if record.status != "finished"]

    @property
    def commands(self) -> dict[str, str]:
        """By the run's name what repeats it alone."""
        return {name: record.command for name, record in self._records.items()}

    def write(self, *, is_over: bool = False) -> CompareData:
        """Write the page; returns what it says. Significance is computed when no run is left to do."""
        comparison, records = self._comparison, tuple(self._records.values())
        dataset = dataset_config(comparison)
        data = CompareData(
            name=comparison.name,
            dataset=comparison.files[0],
            split=comparison.split,
            seeds=comparison.seeds,
            methods=self._about,
            runs=records,
            num_resamples=comparison.num_resamples,
            published=shown_published(comparison),
            from_paper=tuple(differences_from_paper(flatten(config_to_dict(dataset)))),
            pretraining=self._pretraining(),
            outside=self._outside(),
            notes=self._notes,
            command=shlex.join(["python", *sys.orig_argv[1:]]),
            started=self._started,
            total_s=self._earlier_s + (0.0 if self._start is None else time.monotonic() - self._start),
            versions=versions(),
        )
        if is_over:
            data = dataclasses.replace(data, significance=self._significance(data), is_tested=True)
        write_compare_report(self._folder, data)
        return data

    def fail(self, name: str, error: str) -> None:
        """Note a run that cannot be done."""
        self._end(name, "failed", error)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Begin to count the seconds."""
        if self._start is None:
            self._start = time.monotonic()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Keep a run that came to its end."""
        self._end(_name(trial), "unfinished")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Keep a run that failed as often as it may."""
        self._end(_name(trial), "failed", read_error(self._folder, _name(trial)))

    def _end(self, name: str, status: Status, error: str = "") -> None:
        record = self._records[name] = self._record(name, status, error)
        done = sum(record.status != "unfinished" for record in self._records.values())
        shown = f" ({record.error})" if record.error else ""
        logger.info("%s: %s%s; %d of %d runs", name, record.status, shown, done, len(self._records))
        self.write()

    def _record(self, name: str, status: Status, error: str = "") -> RunRecord:
        run = self.runs[name]
        method = self._methods[str(run.parameters["method"])]
        return run_record(self._comparison, method, run, self._folder / RUNS / name, status=status, error=error)

    def _pretraining(self) -> Cost:
        total = Cost()
        for name, run in self.runs.items():
            total += pretraining_cost(run.config, self._folder / RUNS / name)
        return total

    def _outside(self) -> Cost:
        """What was taken from runs that are not of this comparison, every stage once."""
        found: dict[tuple[Path, str], Cost | None] = {}
        for name, run in self.runs.items():
            found |= adopted_costs(run.config, self._folder / RUNS / name)
        total = Cost()
        for (maker, _), cost in found.items():
            if maker.parent != self._folder / RUNS:
                total += cost or Cost()
        return total

    def _significance(self, data: CompareData) -> tuple[Significance, ...]:
        before = self._before
        same = (data.runs, data.num_resamples)
        if before is not None and before.is_tested and (before.runs, before.num_resamples) == same:
            return before.significance
        return bootstrap_differences(data, self._folder / RUNS)


def _able(progress: ComparisonProgress) -> Sequence[Trial]:
    """The unfinished runs whose data are there and can serve them; the others are noted with why not.

    Raises ConfigError when no run at all can be done, and all for one reason.
    """
    able, errors = [], {}
    for run in progress.left:
        try:
            prepare_run(run.config)
            able.append(run)
        except (ValueError, OSError) as error:
            errors[run.name] = one_line(str(error))
    if len(errors) == len(progress.runs) and len(set(errors.values())) == 1:
        raise ConfigError(next(iter(errors.values())))
    for name, reason in errors.items():
        progress.fail(name, reason)
    return able


def shown_published(comparison: CompareConfig) -> str | None:
    """Whose published numbers are shown: by the dataset's name, where its task and its test rows are the published."""
    if comparison.published != "auto":
        return None if comparison.published == "none" else comparison.published
    dataset = dataset_config(comparison)
    if dataset.name not in PUBLISHED:
        return None
    table, data = published_table(dataset.name), dataset.data
    is_same = data.task == table.task and table.domain in {None, data.domain}
    return dataset.name if is_same and data.test_path is None and data.test_domain is None else None


def _placed(run: Trial, folder: Path) -> Trial:
    """The run below the comparison's folder, as an absolute path: the processes of runs may have another home."""
    return dataclasses.replace(run, config=dataclasses.replace(run.config, output_dir=str(folder / RUNS)))


def _name(trial: Any) -> str:
    return str(trial.config["parameters"]["run"])


@contextmanager
def _opened(comparison: CompareConfig, folder: Path) -> Iterator[None]:
    """The folder of a new comparison, or of the same to continue, locked inside the block."""
    link_cache(folder / RUNS)
    refusal = f"another process runs the comparison {folder}; wait for it or choose another name="
    with locked(folder / LOCK, refusal=refusal):
        values = comparison_to_dict(comparison)
        write_text(folder / "comparison.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        yield
