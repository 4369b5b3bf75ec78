"""A sweep on Ray Tune: trials are runs that share stages, never more at a time than fit the cluster whole."""

from __future__ import annotations

import dataclasses
import logging
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.tune
import yaml
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from sprec_ray.cluster.runs.results import versions
from sprec_ray.cluster.runs.run import LOCK, MAY_CHANGE, check_same_settings, prepare_run, ray_for, run_folder
from sprec_ray.cluster.studies.capacity import num_trials_at_a_time
from sprec_ray.cluster.studies.sweep_records import sweep_parameter, trial_record
from sprec_ray.cluster.studies.trial_process import SweepPlan
from sprec_ray.cluster.studies.trials import link_cache, read_error, run_trials
from sprec_ray.config.load import config_to_dict, flatten, read_yaml
from sprec_ray.config.run import ConfigError, RunConfig
from sprec_ray.config.sweep import (
    ParameterConfig,
    SweepConfig,
    Trial,
    make_trial,
    outermost_trials,
    planned_trials,
    sweep_to_dict,
)
from sprec_ray.evaluation.choices import CANDIDATE_METRICS
from sprec_ray.evaluation.pairs import PAIR_METRICS
from sprec_ray.metrics.compute import METRICS
from sprec_ray.reports.sweep.chosen_trial import choose_trial
from sprec_ray.reports.sweep.page import REPORT_FILE, write_sweep_report
from sprec_ray.reports.sweep.results import SWEEP_FILE, SweepData, TrialRecord, read_sweep
from sprec_ray.reports.tables import column_of
from sprec_ray.storage.artifacts import locked, write_text

logger = logging.getLogger(__name__)

SETTINGS = "settings.yaml"
DATA = "prepared-data"
"""The run that makes the data of all trials, and nothing else."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SweepOutcome:
    """What a sweep leaves: its records, its report, and Ray's own view of the trials (None when nothing was to do)."""

    data: SweepData
    report: Path
    results: Any

    @property
    def num_failed(self) -> int:
        """Trials that ended with an error; the same command tries them again."""
        return sum(trial.status == "failed" for trial in self.data.trials)


def tune_sweep(sweep: SweepConfig) -> SweepOutcome:
    """Run, or continue, a sweep. Finished trials are read from disk, unfinished ones go on after their last stage.

    Raises ConfigError for settings that cannot run, before Ray starts. A trial that fails ends no other.
    """
    first = next(outermost_trials(sweep)).config
    _check_metrics(sweep)
    folder = run_folder(dataclasses.replace(first, output_dir=sweep.output_dir, name=sweep.name))
    with _open_sweep(sweep, first, folder):
        progress = SweepProgress(sweep, folder)
        if progress.is_finished:
            return SweepOutcome(data=progress.write(), report=folder / REPORT_FILE, results=None)
        configs = [trial.config for trial in outermost_trials(sweep)]
        prepared = dataclasses.replace(first, name=DATA, output_dir=str(folder / "trials"))
        with ray_for(configs):
            prepare_run(prepared)  # the data of all trials, and what is wrong with them, before anything is launched
            at_a_time = num_trials_at_a_time(configs, sweep.max_concurrent_trials)
            results = _tune(sweep, folder, progress, at_a_time)
        return SweepOutcome(data=progress.write(), report=folder / REPORT_FILE, results=results)


class SweepProgress(ray.tune.Callback):  # type: ignore[misc]
    """Keeps the report of a sweep as far as it has come, and logs every trial that ends."""

    def __init__(self, sweep: SweepConfig, folder: Path) -> None:
        self._sweep, self._folder = sweep, folder
        before = read_sweep(folder) if (folder / SWEEP_FILE).is_file() else None
        kept = {record.name: record for record in before.trials} if before else {}
        self.known = planned_trials(sweep) if sweep.search != "optuna" else _trials_of(sweep, list(kept.values()))
        """The trials that are known beforehand, those of an interrupted sweep among them."""
        self._records = {trial.name: self._record(trial, kept.get(trial.name)) for trial in self.known}
        self._started = before.started if before else time.strftime("%Y-%m-%d %H:%M")
        self._earlier_s, self._start = before.total_s if before else 0.0, time.monotonic()
        self._has_begun = False

    def _record(self, trial: Trial, kept: TrialRecord | None) -> TrialRecord:
        stopped = kept is not None and kept.status == "stopped"
        run = self._folder / "trials" / trial.name
        return trial_record(self._sweep, trial, run, status="stopped" if stopped else "unfinished")

    @property
    def is_finished(self) -> bool:
        """Whether no trial is left to do."""
        num_trials = self._sweep.num_trials if self._sweep.search == "optuna" else len(self.known)
        records = self._records.values()
        return len(records) == num_trials and all(record.status in {"finished", "stopped"} for record in records)

    def data(self) -> SweepData:
        """The sweep as far as it has come."""
        sweep, records = self._sweep, tuple(self._records.values())
        return SweepData(
            name=sweep.name,
            metric=sweep.metric,
            mode=sweep.mode,
            diversity=sweep.diversity,
            split=sweep.split,
            parameters=tuple(sweep_parameter(key, parameter) for key, parameter in sweep.parameters.items()),
            trials=records,
            chosen=choose_trial(records, metric=sweep.metric, mode=sweep.mode, diversity=sweep.diversity),
            command=shlex.join(["python", *sys.orig_argv[1:]]),
            started=self._started,
            total_s=self._earlier_s + (time.monotonic() - self._start if self._has_begun else 0.0),
            versions=versions(),
        )

    def write(self) -> SweepData:
        """Write the report; returns what it says."""
        data = self.data()
        write_sweep_report(self._folder, data)
        return data

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Note a trial, so that an interrupted sweep knows it."""
        self._has_begun = True
        self._note(trial, status="unfinished")

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """Log the metrics of a policy."""
        if not result.get("done"):
            figures = ", ".join(f"{name} {result[name]:.4f}" for name in (self._sweep.metric, self._sweep.diversity))
            logger.info("%s, %s: %s", self._trial(trial).name, result["label"], figures)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Keep a trial that came to its end or was stopped."""
        self._end(trial, status="stopped")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Keep a trial that failed as often as it may."""
        self._end(trial, status="failed", error=read_error(self._folder, self._trial(trial).name))

    def _end(self, trial: Any, **how: Any) -> None:
        record = self._note(trial, **how)
        done = sum(record.status != "unfinished" for record in self._records.values())
        total = self._sweep.num_trials or len(self.known)
        error = f" ({record.error})" if record.error else ""
        logger.info("%s: %s%s; %d of %d trials", record.name, record.status, error, done, total)

    def _note(self, trial: Any, **how: Any) -> TrialRecord:
        made = self._trial(trial)
        record = trial_record(self._sweep, made, self._folder / "trials" / made.name, **how)
        self._records[made.name] = record
        self.write()
        return record

    def _trial(self, trial: Any) -> Trial:
        return make_trial(self._sweep, trial.config["parameters"])


def _tune(sweep: SweepConfig, folder: Path, progress: SweepProgress, at_a_time: int) -> Any:
    """Let Tune run the trials; returns its ResultGrid."""
    # The trials' processes read one file of settings, whatever the sweep was put together from.
    plan = SweepPlan(dataclasses.replace(sweep, base=(str(folder / SETTINGS),), set={}), folder)
    space: Any = ray.tune.grid_search([dict(trial.parameters) for trial in progress.known])
    searcher = None
    if sweep.search == "optuna":
        space = {key: _domain(parameter) for key, parameter in sweep.parameters.items()}
        points = [{f"parameters/{key}": value for key, value in trial.parameters.items()} for trial in progress.known]
        # What was drawn before is drawn again first; with the same seed it would be drawn twice.
        searcher = OptunaSearch(points_to_evaluate=points, seed=sweep.search_seed + len(points))
    scheduler = None
    if sweep.asha is not None:
        last = next(outermost_trials(sweep)).config.selfplay.num_iterations
        scheduler = ASHAScheduler(
            time_attr="iteration",
            max_t=last + 1,  # the last iteration is not stopped but finished
            grace_period=sweep.asha.grace_iterations,
            reduction_factor=sweep.asha.reduction_factor,
        )
    return run_trials(
        plan,
        space,
        folder=folder,
        callbacks=[progress, JsonLoggerCallback()],
        max_failures=sweep.max_failures,
        at_a_time=at_a_time,
        search={
            "metric": sweep.metric,
            "mode": sweep.mode,
            "search_alg": searcher,
            "scheduler": scheduler,
            "num_samples": sweep.num_trials or 1 if searcher else 1,
        },
    )


def _domain(parameter: ParameterConfig) -> Any:
    """What Tune draws a parameter from."""
    if parameter.values:
        return ray.tune.choice(list(parameter.values))
    low, high = parameter.low, parameter.high
    if parameter.whole:
        draw = ray.tune.lograndint if parameter.log else ray.tune.randint
        return draw(round(low or 0), round(high or 0) + 1)
    return ray.tune.loguniform(low, high) if parameter.log else ray.tune.uniform(low, high)


def _trials_of(sweep: SweepConfig, records: Sequence[TrialRecord]) -> list[Trial]:
    return [make_trial(sweep, record.parameters) for record in records[: sweep.num_trials]]


def _check_metrics(sweep: SweepConfig) -> None:
    for name in (sweep.metric, sweep.diversity):
        if name.partition("@")[0] not in {
            *METRICS,
            *PAIR_METRICS,
            *CANDIDATE_METRICS,
            "valid",
            "mass",
            "mrr",
            "target_logp",
        }:
            known = [*(f"{metric}@k" for metric in METRICS), "valid", *PAIR_METRICS, *CANDIDATE_METRICS]
            raise ConfigError(f"{name} is no metric; known: {', '.join(known)}")
    metric = column_of(sweep.metric)
    better = "min" if metric.lower_is_better else "max"
    if sweep.mode != better and not metric.undirected:
        raise ConfigError(f"mode={sweep.mode} looks for the worst {sweep.metric}; set mode={better}")


@contextmanager
def _open_sweep(sweep: SweepConfig, first: RunConfig, folder: Path) -> Iterator[None]:
    """The folder of a new sweep, or of the same to continue, locked inside the block."""
    link_cache(folder / "trials")
    with locked(folder / LOCK, refusal=f"another process runs the sweep {folder}; wait for it or choose another name="):
        settings = config_to_dict(first) | {"output_dir": str(folder / "trials")}
        if (folder / SETTINGS).is_file():
            before, may_change = flatten(read_yaml(folder / SETTINGS)), (*MAY_CHANGE, "name", *sweep.parameters)
            check_same_settings(folder, before, flatten(settings), may_change=may_change)
        write_text(folder / SETTINGS, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        write_text(folder / "sweep.yaml", yaml.safe_dump(sweep_to_dict(sweep), sort_keys=False, allow_unicode=True))
        yield
