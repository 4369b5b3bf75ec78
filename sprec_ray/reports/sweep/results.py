"""What a sweep found: its trials with their results and costs, as values, and as the file sweep.json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sprec_ray.reports.tables import is_policy
from sprec_ray.storage.artifacts import ArtifactError, as_eval_result, read_json, write_json
from sprec_ray.types import EvalResult

SWEEP_FILE = "sweep.json"

Status = Literal["finished", "stopped", "failed", "unfinished"]
Mode = Literal["max", "min"]
Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepParameter:
    """A setting that differs between trials: listed values, or a range of numbers."""

    name: str
    """The dotted key: ``preference.beta``."""
    values: tuple[Value, ...] = ()
    """The listed values in the sweep file's order; empty for a range."""
    low: float | None = None
    high: float | None = None
    log: bool = False
    """Whether the range is drawn, and shown, on a logarithmic scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One trial: what was set, what came of it and what it cost."""

    name: str
    parameters: Mapping[str, Value]
    """The dotted keys of the sweep's parameters with this trial's values."""
    status: Status
    """``stopped`` by the scheduler before its last iteration; ``unfinished`` may still go on."""
    error: str = ""
    """One line, of a failed trial."""
    results: tuple[EvalResult, ...] = ()
    """Of the trained policies on the sweep's split, in order: ``sft``, ``iteration-0``, ``iteration-1`` ..."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Sums over the trial's own spans by kind: ``launch``, ``load``, ``compute``, ``decode``, ``evaluate``."""
    total_s: float = 0.0
    """Seconds from the trial's start to its end, pauses between sessions left out."""
    shared: tuple[str, ...] = ()
    """The stages that were adopted from other trials instead of computed: ``sft``, ``iteration-0/rollouts`` ..."""
    shared_s: float | None = None
    """Seconds of other trials that computed these stages; None where that is not known."""
    command: str = ""
    """Repeats this trial alone."""

    @property
    def policies(self) -> tuple[EvalResult, ...]:
        """The results of trained policies: neither the base nor baselines, should they be among the results."""
        return tuple(result for result in self.results if is_policy(result) and result.label != "base")

    def final(self, key: str) -> float:
        """A metric of the trial's last policy; NaN when it was not measured."""
        return self.policies[-1].metrics.get(key, math.nan) if self.policies else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepData:
    """A sweep as far as it has come."""

    name: str
    metric: str
    """What trials are chosen by: a key of ``EvalResult.metrics`` of their last policy, for example ``ndcg@5``."""
    mode: Mode = "max"
    diversity: str
    """The other axis of the Pareto front, and what decides between equal trials: ``div_ratio@5``."""
    split: Literal["valid", "test"] = "valid"
    """The rows that all results were measured on."""
    parameters: tuple[SweepParameter, ...]
    trials: tuple[TrialRecord, ...] = ()
    chosen: str | None = None
    """Name of the chosen trial; None when no trial has finished."""
    command: str = ""
    started: str = ""
    """When the sweep started, for people."""
    total_s: float = 0.0
    """Seconds of the whole sweep; trials that ran side by side add up to more."""
    versions: Mapping[str, str] = field(default_factory=dict)


def write_sweep(folder: Path, data: SweepData) -> None:
    """Write sweep.json, whole or not at all; an undefined metric (NaN) is null in it."""
    write_json(folder / SWEEP_FILE, dataclasses.asdict(data))


def read_sweep(folder: Path) -> SweepData:
    """The sweep that ``write_sweep`` wrote into the folder; null metrics are NaN again.

    Raises ArtifactError naming the file when it is missing or damaged.
    """
    values = read_json(folder / SWEEP_FILE)
    try:
        return SweepData(
            **{
                **values,
                "parameters": tuple(_parameter(entry) for entry in values["parameters"]),
                "trials": tuple(_trial(entry) for entry in values["trials"]),
            }
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{folder / SWEEP_FILE} is damaged ({type(error).__name__}: {error}); run the sweep's command again, which "
            "writes it anew"
        ) from None


def _parameter(values: Mapping[str, Any]) -> SweepParameter:
    return SweepParameter(**{**values, "values": tuple(values["values"])})


def _trial(values: Mapping[str, Any]) -> TrialRecord:
    results = tuple(as_eval_result(result) for result in values["results"])
    return TrialRecord(**{**values, "results": results, "shared": tuple(values["shared"])})
