"""What jobs.simulate_schedule prints: iteration times by placement and number of GPUs, and where they stop scaling."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

from sprec_ray.config.run import ConfigError
from sprec_ray.schedule.simulation import (
    Iteration,
    Layout,
    Placement,
    StageTimes,
    Workload,
    scale,
    simulate,
    stops_scaling,
)
from sprec_ray.schedule.stage_times import Measured, read_measured, write_measured
from sprec_ray.storage.artifacts import write_json

PLACEMENTS: tuple[Placement, ...] = ("split", "colocate", "sequential")
USAGE = "usage: RUN_OR_YAML [gpus=4,8,64,512] [workers=W decoders=D] [cores=C] [out=FILE] [save=FILE] [KEY=VALUE]"


def schedule_table(arguments: Sequence[str]) -> str:
    """The table of a command line: a run's folder or a YAML file of stage times, then ``key=value``.

    ``gpus`` are the numbers to simulate; ``workers`` and ``decoders`` simulate one layout instead, on ``cores`` that
    they share. ``out`` takes the spans as JSON, ``save`` the stage times as YAML; every other key is a stage time or a
    part of the work. Raises ConfigError for arguments that name nothing.
    """
    if not arguments or "=" in arguments[0]:
        raise ConfigError(USAGE)
    given = dict(_pair(argument) for argument in arguments[1:])
    own = {name: given.pop(name, default) for name, default in _OWN.items()}
    measured = _changed(read_measured(Path(arguments[0]).expanduser()), given)
    if own["save"]:
        write_measured(measured, Path(own["save"]))
    if own["workers"] or own["decoders"]:
        workers, decoders = (_whole(name, own[name]) for name in ("workers", "decoders"))
        cores = float(own["cores"] or inf)
        layouts = [
            Layout(placement=placement, num_workers=workers, num_decoders=decoders, cores=cores)
            for placement in PLACEMENTS
        ]
        iterations = [simulate(measured.times, measured.work, layout) for layout in layouts]
    else:
        counts = [_whole("gpus", part) for part in own["gpus"].split(",")]
        iterations = [
            scale(measured.times, measured.work, placement, count) for placement in PLACEMENTS for count in counts
        ]
    if own["out"]:
        write_json(Path(own["out"]), [_timeline(iteration) for iteration in iterations])
    return "\n".join([*_heading(measured), *map(_row, iterations), "", *_limits(measured)])


_OWN = {"gpus": "4,8,64,512", "workers": "", "decoders": "", "cores": "", "out": "", "save": ""}


def _heading(measured: Measured) -> list[str]:
    lines = []
    if measured.iteration_s is not None:
        lines = [f"measured: {measured.iteration_s:.1f} s per iteration", ""]
    return [
        *lines,
        "| placement | devices | workers | decoders | iteration s | busy | spent on |",
        "|---|---|---|---|---|---|---|",
    ]


def _row(iteration: Iteration) -> str:
    layout = iteration.layout
    terms = [f"{term} {seconds / iteration.seconds:.0%}" for term, seconds in list(iteration.terms.items())[:3]]
    cells: list[object] = [layout.placement, layout.num_gpus, layout.num_workers, layout.num_decoders]
    cells += [f"{iteration.seconds:.2f}", f"{iteration.utilisation:.0%}", ", ".join(terms)]
    return "| " + " | ".join(map(str, cells)) + " |"


def _timeline(iteration: Iteration) -> dict[str, Any]:
    layout = iteration.layout
    return {
        **{name: getattr(layout, name) for name in ("placement", "num_workers", "num_decoders", "num_gpus")},
        "seconds": iteration.seconds,
        "spans": [dataclasses.asdict(span) for span in iteration.spans],
    }


def _limits(measured: Measured) -> list[str]:
    lines = []
    for placement in PLACEMENTS:
        count, term = stops_scaling(measured.times, measured.work, placement)
        lines.append(f"{placement}: from {count} devices on, twice as many save less than 10 %; most goes to {term}")
    chunks = -(-measured.work.num_examples // measured.work.chunk_size)
    batch = min(filter(None, (measured.work.sft_batch, measured.work.preference_batch)))
    lines.append(f"a global batch of {batch} takes {batch} workers at most; {chunks} chunks take {chunks} decoders")
    return lines


def _changed(measured: Measured, given: dict[str, str]) -> Measured:
    """The stage times and the work with what a command line says of them."""
    times = {field.name for field in dataclasses.fields(StageTimes)}
    work = {field.name for field in dataclasses.fields(Workload)}
    if unknown := sorted(set(given) - times - work):
        raise ConfigError(f"{unknown[0]} is no argument, no stage time and no part of the work; {USAGE}")
    return dataclasses.replace(
        measured,
        times=dataclasses.replace(measured.times, **{k: _number(k, v) for k, v in given.items() if k in times}),
        work=dataclasses.replace(measured.work, **{k: _whole(k, v) for k, v in given.items() if k in work}),
    )


def _pair(argument: str) -> tuple[str, str]:
    key, equals, value = argument.partition("=")
    if not equals:
        raise ConfigError(f"{argument} is no key=value; {USAGE}")
    return key, value


def _whole(name: str, text: str) -> int:
    if not text.isdigit() or not int(text):
        raise ConfigError(f"{name}={text} must be a whole number above 0")
    return int(text)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{name}={text} must be a number of seconds") from None
