"""The configuration of a command line: defaults, then YAML files, then ``section.key=value``."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from sprec_ray.config.addresses import holds_credentials
from sprec_ray.config.run import ConfigError, RunConfig

_ADAPTER = TypeAdapter(RunConfig)


def load_config(arguments: Sequence[str]) -> RunConfig:
    """The configuration of a command line: YAML files left to right, then ``section.key=value`` overrides.

    Raises ConfigError naming the file or key and the remedy.
    """
    merged: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        _refuse_credentials({key: value})  # also of a setting that a later argument replaces: reports show the command
        if equals and not key.endswith((".yaml", ".yml")):
            _merge(merged, _nested(key.strip(), scalar(value)), source=argument)
        else:
            _merge(merged, read_yaml(Path(argument)), source=argument)
    return make_config(merged)


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """A RunConfig of nested plain values; ConfigError names the first key that is wrong."""
    _refuse_credentials(values)
    try:
        return _ADAPTER.validate_python(dict(values))
    except ValidationError as error:
        raise ConfigError(explain(error, RunConfig)) from None


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as nested plain values, ready for YAML or JSON."""
    values: dict[str, Any] = _ADAPTER.dump_python(config, mode="json")
    return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted keys.

    >>> flatten({"sft": {"num_epochs": 4}})
    {'sft.num_epochs': 4}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections of a YAML file. Raises ConfigError naming the file when it is missing or not valid."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file; see configs/ for the shipped ones")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections with keys, found {type(values).__name__}")
    return values


def _refuse_credentials(values: Mapping[str, Any]) -> None:
    """Settings are saved in config.yaml and shown in the report: an address must not carry a secret there."""
    for key, value in flatten(values).items():
        if isinstance(value, str) and holds_credentials(value):
            raise ConfigError(
                f"{key} holds an address with credentials inside, which would be saved with the run; take them out and "
                "set them in the environment (for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
            )


def scalar(text: str) -> Any:
    """The value of an override, read as YAML."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        try:
            return float(value)  # YAML reads 2e-5 as text
        except ValueError:
            return value
    return value


def _nested(dotted: str, value: Any) -> dict[str, Any]:
    for key in reversed(dotted.split(".")):
        value = {key: value}
    result: dict[str, Any] = value
    return result


def _merge(into: dict[str, Any], values: Mapping[str, Any], *, source: str) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value, source=source)
        elif isinstance(into.get(key), dict):
            raise ConfigError(f"{source}: {key} is a section; write {key}.<key>=value")
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def explain(error: ValidationError, root: Any) -> str:
    """One line for the first thing that is wrong with values of the dataclass ``root``."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(location)
    if first["type"] == "missing":
        return f"{key} is missing"
    if first["type"] == "unexpected_keyword_argument":
        section = root
        for part in location[:-1]:
            section = _section_type(section, part)
        if not dataclasses.is_dataclass(section):
            return f"{key}: unknown key"
        known = [field.name for field in dataclasses.fields(section)]
        close = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*location[:-1], close[0]])}?" if close else f"known: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}={first['input']!r}: {message[0].lower()}{message[1:]}"


def _section_type(section: Any, name: str) -> Any:
    fields = dataclasses.fields(section) if dataclasses.is_dataclass(section) else ()
    return {field.name: type(field.default) for field in fields}.get(name)
