"""The configuration of a sweep: which settings differ between its trials, and how trials are drawn and chosen."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import random
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, WrapValidator, model_validator
from pydantic.dataclasses import dataclass

from sprec_ray.config.data import STRICT, NonNegativeInt, PositiveInt, size_or_auto
from sprec_ray.config.load import explain, load_config, read_yaml, scalar
from sprec_ray.config.run import ConfigError, RunConfig

Value = bool | int | float | str | None
Concurrency = Annotated[PositiveInt | Literal["auto"], WrapValidator(size_or_auto)]

NOT_SWEPT = ("name", "output_dir", "share_stages", "data.", "evaluation.")
"""What belongs to the sweep as a whole: its trials are measured on the same rows in the same way."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ParameterConfig:
    """What one setting may be: listed values, or a range of numbers (not with ``search=grid``)."""

    values: tuple[Value, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False
    """Draw from the range on a logarithmic scale."""
    whole: bool = False
    """Draw whole numbers; ``high`` is one of them."""

    @model_validator(mode="after")
    def _check(self) -> ParameterConfig:
        if bool(self.values) == (self.low is not None or self.high is not None):
            raise ValueError("give either values: [...] or low: and high:")
        if not self.values and (self.low is None or self.high is None or not self.low < self.high):
            raise ValueError("a range needs low: and high:, low below high")
        if self.log and (self.low is None or self.low <= 0):
            raise ValueError("log: true needs a range with low above 0")
        return self

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values, or both ends of the range: what trials are checked with before they are drawn."""
        return self.values or (self.rounded(self.low or 0.0), self.rounded(self.high or 0.0))

    def draw(self, rng: random.Random) -> Value:
        """One of the values, or a number of the range."""
        if self.values:
            return rng.choice(self.values)
        low, high = self.low or 0.0, self.high or 0.0
        if self.whole and not self.log:
            return rng.randint(math.ceil(low), math.floor(high))
        drawn = math.exp(rng.uniform(math.log(low), math.log(high))) if self.log else rng.uniform(low, high)
        return self.rounded(drawn)

    def rounded(self, value: Any) -> Value:
        """A number of the range with four digits, or whole: names of trials and their settings say the same."""
        if self.values:
            return value  # type: ignore[no-any-return]
        return round(value) if self.whole else float(f"{value:.4g}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AshaConfig:
    """Asynchronous successive halving: trials that do worse than others after as many iterations are stopped."""

    grace_iterations: PositiveInt = 1
    """Self-play iterations that every trial has."""
    reduction_factor: Annotated[float, Field(gt=1)] = 2.0
    """One in so many trials goes on at each decision; the next is after this times as many iterations."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SweepConfig:
    """Runs of one configuration that differ in a few settings, and how they are drawn, compared and scheduled."""

    name: str
    """The sweep's folder under ``output_dir``."""
    output_dir: str = "runs"
    base: Annotated[tuple[str, ...], Field(min_length=1)]
    """Configuration files of all trials, relative to the sweep file's folder."""
    set: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of all trials over those files, by their dotted keys."""
    search: Literal["grid", "random", "optuna"] = "grid"
    parameters: Annotated[dict[str, ParameterConfig], Field(min_length=1)]
    """The settings that differ, by their dotted keys."""
    num_trials: PositiveInt | None = None
    """How many trials ``random`` and ``optuna`` draw."""
    search_seed: NonNegativeInt = 0
    """Of what is drawn; the runs' own seed is the setting ``seed``."""
    metric: str = "ndcg@5"
    """What trials are compared by, of their last policy."""
    mode: Literal["max", "min"] = "max"
    diversity: str = "div_ratio@5"
    """The other axis of the Pareto front."""
    split: Literal["valid", "test"] = "valid"
    """The rows that policies are measured on. What is chosen on the test rows is not measured by them any more."""
    asha: AshaConfig | None = None
    max_concurrent_trials: Concurrency = "auto"
    """Trials at a time, never more than the cluster has room for as whole runs; ``auto`` also gives each of those that
    train on a CPU cores of its own."""
    max_failures: NonNegativeInt = 1
    """How often a trial that fails is started again; it goes on after its last finished stage."""

    @model_validator(mode="after")
    def _check(self) -> SweepConfig:
        if not re.fullmatch(r"[\w.+-]+", self.name) or self.name in {".", "..", "cache"}:
            raise ValueError(f"name={self.name!r} must be a folder name of letters, digits and ._+-, and not 'cache'")
        if "://" in self.output_dir:
            raise ValueError(f"output_dir={self.output_dir}: trials share files by links; give a folder")
        for key, parameter in self.parameters.items():
            if any(key == name or (name.endswith(".") and key.startswith(name)) for name in NOT_SWEPT):
                raise ValueError(f"parameters.{key} would make trials that cannot be compared; put it under set:")
            if self.search == "grid" and not parameter.values:
                raise ValueError(f"parameters.{key} is a range, and search=grid needs values: [...]")
        if (self.num_trials is None) != (self.search == "grid"):
            does = "tries every combination; leave it out" if self.num_trials else "needs it"
            raise ValueError(f"num_trials={self.num_trials}: search={self.search} {does}")
        if self.asha is not None and "selfplay.num_iterations" in self.parameters:
            raise ValueError("parameters.selfplay.num_iterations cannot be swept with asha, which stops iterations")
        return self


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of a sweep."""

    name: str
    parameters: Mapping[str, Value]
    config: RunConfig


_ADAPTER = TypeAdapter(SweepConfig)


def load_sweep(arguments: Sequence[str]) -> SweepConfig:
    """The sweep of a file, then ``key=value`` overrides: of its own keys, else of the settings of all trials.

    Raises ConfigError naming the file or key and the remedy, also for trials whose settings do not fit together.
    """
    if not arguments or "=" in arguments[0]:
        raise ConfigError("give a sweep file first, for example configs/sweeps/beta_negatives.yaml")
    file = Path(arguments[0])
    values = {"name": file.stem, **read_yaml(file)}
    own = {field.name for field in dataclasses.fields(SweepConfig)} - {"base", "set", "parameters"}
    for argument in arguments[1:]:
        key, equals, text = argument.partition("=")
        section, _, below = key.partition(".")
        if not equals:
            raise ConfigError(f"{argument}: expected key=value after the sweep file")
        if section not in own:
            values["set"] = {**(values.get("set") or {}), key: scalar(text)}
        elif below:
            values[section] = {**(values.get(section) or {}), below: scalar(text)}
        else:
            values[key] = scalar(text)
    try:
        sweep = _ADAPTER.validate_python(values)
    except ValidationError as error:
        raise ConfigError(f"{file}: {explain(error, SweepConfig)}") from None
    base = tuple(str((file.parent / name).resolve()) for name in sweep.base)
    sweep = dataclasses.replace(sweep, base=base)
    _check_trials(sweep)
    return sweep


def sweep_to_dict(sweep: SweepConfig) -> dict[str, Any]:
    """The sweep as plain values, ready for YAML."""
    values: dict[str, Any] = _ADAPTER.dump_python(sweep, mode="json")
    return values


def planned_trials(sweep: SweepConfig) -> list[Trial]:
    """The trials of ``grid`` and ``random``, in order and without repeats; ``optuna`` draws while it goes."""
    parameters = sweep.parameters
    if sweep.search == "grid":
        combined = itertools.product(*(parameter.values for parameter in parameters.values()))
        return [make_trial(sweep, dict(zip(parameters, values, strict=True))) for values in combined]
    rng = random.Random(sweep.search_seed)
    trials: dict[str, Trial] = {}
    for _ in range(100 * (sweep.num_trials or 0)):  # listed values may have fewer combinations than are asked for
        if len(trials) == sweep.num_trials:
            break
        trial = make_trial(sweep, {key: parameter.draw(rng) for key, parameter in parameters.items()})
        trials.setdefault(trial.name, trial)
    return list(trials.values())


def make_trial(sweep: SweepConfig, parameters: Mapping[str, Any]) -> Trial:
    """The trial with these parameters, rounded as its name says. Raises ConfigError when they do not fit together."""
    values = {key: sweep.parameters[key].rounded(value) for key, value in parameters.items()}
    name = "_".join(f"{short}-{_plain(values[key])}" for key, short in _short_keys(sweep).items())
    own = [f"name={name}", f"output_dir={sweep.output_dir}/{sweep.name}/trials", "share_stages=true"]
    try:
        config = load_config([*sweep.base, *overrides(sweep.set), *overrides(values), *own])
    except ConfigError as error:
        raise ConfigError(f"trial {name}: {error}") from None
    return Trial(name=name, parameters=values, config=config)


def trial_command(sweep: SweepConfig, trial: Trial) -> str:
    """The command that repeats a trial alone, beside the sweep; it measures on the test rows."""
    files = [os.path.relpath(file) for file in sweep.base]
    own = [f"name={sweep.name}_{trial.name}", f"output_dir={sweep.output_dir}"]
    settings = [*overrides(sweep.set), *overrides(trial.parameters), *own]
    return shlex.join(["python", "-m", "jobs.train_selfplay", *files, *settings])


def outermost_trials(sweep: SweepConfig) -> Iterator[Trial]:
    """The trials of all combinations of listed values and ends of ranges, at most a thousand."""
    keys = sweep.parameters
    for values in itertools.islice(itertools.product(*(parameter.ends for parameter in keys.values())), 1000):
        yield make_trial(sweep, dict(zip(keys, values, strict=True)))


def _check_trials(sweep: SweepConfig) -> None:
    """Check the metrics and ASHA with every outermost trial; making one checks its settings."""
    for trial in outermost_trials(sweep):
        config = trial.config
        if sweep.asha is not None and sweep.asha.grace_iterations >= config.selfplay.num_iterations:
            raise ConfigError(
                f"asha.grace_iterations={sweep.asha.grace_iterations} leaves nothing to stop of "
                f"selfplay.num_iterations={config.selfplay.num_iterations}; lower it"
            )
        for name in (sweep.metric, sweep.diversity):
            measured, at, k = name.partition("@")
            if at and k not in map(str, config.evaluation.k):
                raise ConfigError(
                    f"{measured}@{k} is not measured: evaluation.k={list(config.evaluation.k)}; choose one of these k"
                )


def _short_keys(sweep: SweepConfig) -> dict[str, str]:
    """The last part of each parameter's key, or all of it where two end alike."""
    last = [key.rsplit(".", 1)[-1] for key in sweep.parameters]
    return {
        key: short if last.count(short) == 1 else key.replace(".", "-")
        for key, short in zip(sweep.parameters, last, strict=True)
    }


def _plain(value: Value) -> str:
    return re.sub(r"[^\w.+-]", "-", str(value))


def overrides(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Settings as arguments ``section.key=value``; nested ones are flattened."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from overrides(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={value if isinstance(value, str) else json.dumps(value)}"
