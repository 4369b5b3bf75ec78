"""The configuration of a comparison: methods laid over a dataset's configuration, each run with several seeds."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic.dataclasses import dataclass

from sprec_ray.config.data import STRICT, NonNegativeInt
from sprec_ray.config.load import config_to_dict, explain, load_config, scalar
from sprec_ray.config.run import ConfigError, RunConfig
from sprec_ray.config.sweep import Concurrency, Trial, overrides

Variant = Literal["paper", "reference"]
Study = Literal["random_ratio", "num_negatives"]
Published = Literal["auto", "none", "movielens", "goodreads", "cds", "steam", "dmpo-ml-1m", "dmpo-amazon-movie"]

METHODS_FOLDER = "methods"
STUDIES: dict[Study, tuple[str, tuple[float | int, ...]]] = {
    "random_ratio": ("sprec_random_ratio", (0.0, 0.25, 0.5, 0.75, 1.0)),
    "num_negatives": ("sprec_n", (1, 2, 4, 8)),
}
"""Per study its method and the values of ``selfplay.<study>`` (arXiv 2412.09243, Fig. 5 and 6)."""
STUDY_EXAMPLES = 1024
"""Examples of an iteration in a study (section 5.4)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CompareConfig:
    """Which methods are compared, on which data and with which seeds."""

    name: str
    """The comparison's folder under ``output_dir``; by default ``compare-`` and the name in the dataset's file."""
    output_dir: str = "runs"
    files: Annotated[tuple[str, ...], Field(min_length=1)]
    """Configuration files of all runs: the dataset's, then those of hardware or a preset."""
    set: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of all runs over those files, by their dotted keys; what a method's own file sets, it keeps."""
    method_set: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """Settings of one method over its file, by the method's name and their dotted keys."""
    methods: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of files in the folder ``methods`` beside the dataset's file, or paths of files; ``:reference`` after a
    name asks for the published code's variant of it."""
    variant: Variant = "paper"
    """Of every method that does not name its own, where it has one."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0, 1, 2)
    studies: tuple[Study, ...] = ()
    """Further runs of SPRec over a range of random ratios, or of numbers of negatives."""
    split: Literal["test", "valid"] = "test"
    """The rows that policies are measured on."""
    published: Published = "auto"
    """Whose published numbers stand beside ours; ``auto`` takes those of the dataset that the files name."""
    num_resamples: Annotated[int, Field(ge=100)] = 2000
    """Of the paired bootstrap."""
    max_concurrent_trials: Concurrency = "auto"
    """Runs at a time; never more than the cluster has room for as whole runs."""
    max_failures: NonNegativeInt = 1
    """How often a run that fails is started again; it goes on after its last finished stage."""

    @field_validator("methods", "seeds", "studies", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        """``methods=bigrec,sprec`` and ``seeds=0`` read as lists."""
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return [value] if isinstance(value, int) else value

    @model_validator(mode="after")
    def _check(self) -> CompareConfig:
        if not re.fullmatch(r"[\w.+-]+", self.name) or self.name in {".", "..", "cache"}:
            raise ValueError(f"name={self.name!r} must be a folder name of letters, digits and ._+-, and not 'cache'")
        if "://" in self.output_dir:
            raise ValueError(f"output_dir={self.output_dir}: runs share files by links; give a folder")
        for key in ("methods", "seeds", "studies"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise ValueError(f"{key}={list(values)} names one twice; leave it out")
        return self


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One row of the comparison: a method's files over the dataset's, or a point of a study."""

    label: str
    """``sprec``, ``sprec:reference``, or ``sprec_n num_negatives=4`` of a study."""
    name: str
    """Of its file: ``sprec``."""
    variant: Variant
    files: tuple[str, ...]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Over its files."""
    study: Study | None = None
    value: float | None = None
    """Of the setting that the study varies."""


_REFUSED = {
    "seed": "a comparison has several; write seeds=[{}]",
    "share_stages": "the runs of a comparison share stages; leave it out",
    "name": "the comparison names and places its runs; leave it out",
    "output_dir": "the comparison names and places its runs; leave it out",
    "recommender": "it is the method's to say what recommends; name methods, for example methods=[sasrec]",
}
"""Settings of a run that neither a whole comparison nor one of its methods is given, and why."""
_ADAPTER = TypeAdapter(CompareConfig)
_OWN = {field.name for field in dataclasses.fields(CompareConfig)} - {"files", "set", "method_set"}


def load_comparison(arguments: Sequence[str]) -> CompareConfig:
    """The comparison of a command line: configuration files, then ``key=value``.

    A key is the comparison's own, or of the settings of all runs, or, after a method's name and a dot, of that method.
    Raises ConfigError naming the file or key and the remedy, also for runs whose settings do not fit together.
    """
    files = [argument for argument in arguments if argument.endswith((".yaml", ".yml")) and "=" not in argument]
    if not files:
        raise ConfigError("give a dataset's configuration first, for example configs/goodreads.yaml methods=[bigrec]")
    values: dict[str, Any] = {"files": files, "set": {}, "method_set": {}}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if argument in files:
            continue
        if not equals:
            raise ConfigError(f"{argument}: expected a .yaml file or key=value")
        section, _, below = key.partition(".")
        is_of_method = bool(below) and section not in _sections()
        setting = below if is_of_method else key
        if setting in _REFUSED and key not in _OWN:
            raise ConfigError(f"{argument}: {_REFUSED[setting].format(text)}")
        if key in _OWN:
            values[key] = scalar(text)
        elif is_of_method:
            values["method_set"].setdefault(section, {})[below] = scalar(text)
        else:
            values["set"][key] = scalar(text)
    if "methods" not in values:
        known = ", ".join(known_methods(files[0])) or f"no files in {_folder(files[0])}"
        raise ConfigError(f"name the methods to compare, for example methods=[bigrec,sprec]; known: {known}")
    values.setdefault("name", f"compare-{load_config(files + _data_path(values)).name}")
    try:
        comparison = _ADAPTER.validate_python(values)
    except ValidationError as error:
        raise ConfigError(explain(error, CompareConfig)) from None
    planned_runs(comparison)  # raises for what does not fit together
    return comparison


def comparison_to_dict(comparison: CompareConfig) -> dict[str, Any]:
    """The comparison as plain values, ready for YAML."""
    values: dict[str, Any] = _ADAPTER.dump_python(comparison, mode="json")
    return values


def known_methods(dataset_file: str) -> list[str]:
    """The names of the methods beside a dataset's file."""
    return sorted(path.stem for path in _folder(dataset_file).glob("*.yaml"))


def chosen_methods(comparison: CompareConfig) -> list[Method]:
    """The methods in the order of the command, then the points of the studies. Raises ConfigError for unknown ones."""
    methods = [_method(comparison, text) for text in comparison.methods]
    for study in comparison.studies:
        methods += _study(comparison, study)
    unknown = set(comparison.method_set) - {method.name for method in methods}
    for name in sorted(unknown):
        key = next(iter(comparison.method_set[name]))
        close = difflib.get_close_matches(name, [*_sections(), *(method.name for method in methods)], n=1)
        hint = f"did you mean {close[0]}.{key}?" if close else "it is neither a section nor one of the methods"
        raise ConfigError(f"{name}.{key}: {hint}")
    labels = [method.label for method in methods]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"methods={list(comparison.methods)} names {label} twice; leave one out")
    return methods


def planned_runs(comparison: CompareConfig) -> list[Trial]:
    """Every method with every seed: a method's seeds one after the other, so that runs side by side share little.

    Raises ConfigError, naming the method, for settings that do not fit together.
    """
    return [make_run(comparison, method, seed) for method in chosen_methods(comparison) for seed in comparison.seeds]


def make_run(comparison: CompareConfig, method: Method, seed: int) -> Trial:
    """The run of a method with a seed, below the comparison's folder."""
    name = re.sub(r"[^\w.+-]", "-", f"{method.label}-{seed}")
    place = f"output_dir={comparison.output_dir}/{comparison.name}/runs"
    try:
        config = load_config([*_settings(comparison, method, seed), f"name={name}", place, "share_stages=true"])
    except ConfigError as error:
        raise ConfigError(f"method {method.label}: {error}") from None
    return Trial(name=name, parameters={"method": method.label, "seed": seed}, config=config)


def dataset_config(comparison: CompareConfig) -> RunConfig:
    """The dataset's files with the settings of all runs: what the methods are laid over."""
    return load_config([*comparison.files, *overrides(comparison.set)])


def run_command(comparison: CompareConfig, method: Method, run: Trial) -> str:
    """The command that repeats a run alone, beside the comparison."""
    settings = _settings(comparison, method, run.config.seed)
    own = [f"name={comparison.name}_{run.name}", f"output_dir={comparison.output_dir}"]
    jobs = ["jobs.train_selfplay", *(["jobs.evaluate"] if comparison.split == "valid" else [])]
    return " && ".join(shlex.join(["python", "-m", job, *settings, *own]) for job in jobs)


def _settings(comparison: CompareConfig, method: Method, seed: int) -> list[str]:
    """The arguments that make a run's configuration: the dataset, what is set for all, the method, the seed."""
    files = [os.path.relpath(file) for file in (*comparison.files, *method.files)]
    first = len(comparison.files)
    return [*files[:first], *overrides(comparison.set), *files[first:], *overrides(method.settings), f"seed={seed}"]


def _method(comparison: CompareConfig, text: str) -> Method:
    """The method of a name or path with an optional variant."""
    name, colon, asked = text.partition(":")
    if colon and asked not in {"paper", "reference"}:
        raise ConfigError(f"methods: {text}: the variants are {name}:paper and {name}:reference")
    folder = _folder(comparison.files[0])
    file = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not file.is_file():
        known = known_methods(comparison.files[0])
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
        raise ConfigError(f"methods: there is no method {name} ({file} does not exist); {hint}")
    reference = file.parent / "reference" / file.name
    if asked == "reference" and not reference.is_file():
        raise ConfigError(f"methods: {text}: {file.stem} has no reference variant ({reference} does not exist)")
    variant = asked or comparison.variant
    is_reference = variant == "reference" and reference.is_file()
    return Method(
        label=f"{file.stem}:reference" if asked == "reference" else file.stem,
        name=file.stem,
        variant="reference" if is_reference else "paper",
        files=(str(file), str(reference)) if is_reference else (str(file),),
        settings=comparison.method_set.get(file.stem, {}),
    )


def _study(comparison: CompareConfig, study: Study) -> Iterator[Method]:
    """The points of a study, with the number of examples that the paper gives them unless one is set."""
    name, values = STUDIES[study]
    base = _method(comparison, name)
    examples: dict[str, Any] = {}
    if "selfplay.num_examples" not in comparison.set:
        given = dataset_config(comparison).selfplay.num_examples
        examples["selfplay.num_examples"] = min(given, STUDY_EXAMPLES) if isinstance(given, int) else STUDY_EXAMPLES
    for value in values:
        settings = {**examples, **base.settings, f"selfplay.{study}": value}
        yield dataclasses.replace(
            base, label=f"{base.label} {study}={value:g}", settings=settings, study=study, value=float(value)
        )


def _folder(dataset_file: str) -> Path:
    """The methods beside a dataset's file, or those of the working directory."""
    beside = Path(dataset_file).parent / METHODS_FOLDER
    return beside if beside.is_dir() else Path("configs") / METHODS_FOLDER


def _sections() -> list[str]:
    return [key for key, value in config_to_dict(RunConfig()).items() if isinstance(value, dict)]


def _data_path(values: Mapping[str, Any]) -> list[str]:
    """What a dataset's file may leave to the command line, without which it is no configuration."""
    return list(overrides({key: value for key, value in values["set"].items() if key.startswith("data.")}))
