"""What a comparison found: its methods, runs, costs and significance, as values, and as the file compare.json."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sprec_ray.storage.artifacts import ArtifactError, as_eval_result, read_json, write_json
from sprec_ray.types import EvalResult

COMPARE_FILE = "compare.json"
REFERENCES = ("popularity", "last_item", "liked share", "random")
"""Labels of what every run measures beside its policies."""

Status = Literal["finished", "failed", "unfinished"]
Kind = Literal["language model", "collaborative", "simple"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What stages took. Seconds of processors are a stage's seconds times what its side reserves."""

    cpu_s: float = 0.0
    gpu_s: float = 0.0
    trained_tokens: int = 0
    """Tokens of prompts and responses that optimizer steps were computed on, every epoch counted."""
    decoded_tokens: int = 0
    """Tokens of decoded answers."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(Cost)})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run: a method with a seed."""

    name: str
    method: str
    """The method's label."""
    seed: int
    status: Status
    error: str = ""
    """One line, of a failed run."""
    results: tuple[EvalResult, ...] = ()
    """Of the run's policies in order, then the references."""
    spent: Cost = Cost()
    """What the run computed itself."""
    alone: Cost | None = None
    """What it would have, had it shared nothing: with the stages that other runs made; None where that is not known."""
    shared: Mapping[str, str] = field(default_factory=dict)
    """The stages that another run made, with that run's name."""
    command: str = ""
    """Repeats this run alone."""

    @property
    def policies(self) -> tuple[EvalResult, ...]:
        """The results of trained policies, in order."""
        return tuple(result for result in self.results if result.label not in (*REFERENCES, "base"))

    @property
    def measured(self) -> EvalResult | None:
        """The result of the run's last policy; None when the run is not finished."""
        return self.policies[-1] if self.status == "finished" and self.policies else None


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRecord:
    """A row of the comparison: what the method is."""

    label: str
    name: str
    """Of its file."""
    kind: Kind
    """``simple`` learns nothing: popularity, random titles, what followed the last title."""
    variant: Literal["paper", "reference"] = "paper"
    about: str = ""
    """The first lines of its file."""
    settings: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """Dotted keys with the dataset's value and the method's, where they differ."""
    variant_settings: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """Dotted keys with the paper's value and the published code's, of a method that has both variants."""
    study: str | None = None
    """The setting that a study varies, without its section; None of a method of the table."""
    value: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Significance:
    """The paired bootstrap of one metric between two methods."""

    method: str
    rival: str
    metric: str
    """With its k: ``ndcg@5``."""
    difference: float
    low: float
    high: float
    """The 95 % interval of the difference, method less rival."""
    p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareData:
    """A comparison as far as it has come."""

    name: str
    dataset: str
    """The dataset's file."""
    split: Literal["test", "valid"] = "test"
    seeds: tuple[int, ...]
    methods: tuple[MethodRecord, ...]
    runs: tuple[RunRecord, ...]
    significance: tuple[Significance, ...] = ()
    is_tested: bool = False
    """Whether ``significance`` is all that there will be; before, it is not yet computed."""
    num_resamples: int = 0
    published: str | None = None
    """The dataset of ``published.yaml`` whose numbers stand beside ours."""
    from_paper: tuple[tuple[str, Any, Any], ...] = ()
    """(dotted key, ours, the paper's) where the dataset's configuration differs from the settings of its paper."""
    pretraining: Cost = Cost()
    """Of the small Llama, once for all runs, as far as these runs made it."""
    outside: Cost = Cost()
    """Of the stages that were taken from runs which are not of this comparison, each once."""
    notes: tuple[str, ...] = ()
    """Sentences on settings that methods keep."""
    command: str = ""
    started: str = ""
    total_s: float = 0.0
    """Seconds of the whole comparison; runs side by side add up to more."""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def shown_methods(self) -> list[MethodRecord]:
        """The methods of the tables that have a finished run."""
        return [method for method in self.table_methods if self.measured(method.label)]

    @property
    def table_methods(self) -> list[MethodRecord]:
        """The methods of the tables: all but the points of studies."""
        return [method for method in self.methods if method.study is None]

    def method(self, label: str) -> MethodRecord:
        """The method of a label."""
        return next(method for method in self.methods if method.label == label)

    def runs_of(self, label: str) -> list[RunRecord]:
        """The runs of a method, in the order of the seeds."""
        return [run for run in self.runs if run.method == label]

    def measured(self, label: str) -> list[EvalResult]:
        """The results of a method's last policies: one per finished seed."""
        return [run.measured for run in self.runs_of(label) if run.measured is not None]

    def values(self, label: str, key: str) -> list[float]:
        """A metric of a method, one value per finished seed that measured it."""
        return [result.metrics[key] for result in self.measured(label) if key in result.metrics]

    def references(self) -> dict[str, list[EvalResult]]:
        """What the rules that learn nothing give to the same rows, by label, one result per seed: runs agree in it."""
        found: dict[str, dict[int, EvalResult]] = {}
        for run in self.runs:
            for result in run.results if run.status == "finished" else ():
                if result.label in REFERENCES:
                    found.setdefault(result.label, {}).setdefault(run.seed, result)
        return {label: list(by_seed.values()) for label, by_seed in found.items()}


DIGITS = 12
"""Of means and differences: what is equal but for the rounding of sums is equal. Counts over rows often are."""


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; NaN without values, and a NaN deviation of fewer than two."""
    if not values:
        return math.nan, math.nan
    return round(statistics.fmean(values), DIGITS), statistics.stdev(values) if len(values) > 1 else math.nan


def write_comparison(folder: Path, data: CompareData) -> None:
    """Write compare.json, whole or not at all; an undefined number (NaN) is null in it."""
    write_json(folder / COMPARE_FILE, dataclasses.asdict(data))


def read_comparison(folder: Path) -> CompareData:
    """The comparison that ``write_comparison`` wrote into the folder.

    Raises ArtifactError naming the file when it is missing or damaged.
    """
    values = read_json(folder / COMPARE_FILE)
    try:
        return CompareData(
            **{
                **values,
                "seeds": tuple(values["seeds"]),
                "methods": tuple(_method(entry) for entry in values["methods"]),
                "runs": tuple(_run(entry) for entry in values["runs"]),
                "significance": tuple(_significance(entry) for entry in values["significance"]),
                "from_paper": tuple(tuple(entry) for entry in values["from_paper"]),
                "pretraining": Cost(**values["pretraining"]),
                "outside": Cost(**values.get("outside", {})),  # files written before it was counted lack it
                "notes": tuple(values["notes"]),
            }
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{folder / COMPARE_FILE} is damaged ({type(error).__name__}: {error}); delete it and run the comparison's "
            "command again, which writes it anew"
        ) from None


def _method(values: Mapping[str, Any]) -> MethodRecord:
    pairs = {key: {name: tuple(pair) for name, pair in values[key].items()} for key in ("settings", "variant_settings")}
    return MethodRecord(**{**values, **pairs})


def _run(values: Mapping[str, Any]) -> RunRecord:
    alone = None if values["alone"] is None else Cost(**values["alone"])
    results = tuple(as_eval_result(result) for result in values["results"])
    return RunRecord(**{**values, "results": results, "spent": Cost(**values["spent"]), "alone": alone})


def _significance(values: Mapping[str, Any]) -> Significance:
    numbers = {key: math.nan if values[key] is None else values[key] for key in ("difference", "low", "high", "p")}
    return Significance(**{**values, **numbers})
