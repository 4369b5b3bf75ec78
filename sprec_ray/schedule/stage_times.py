"""What a simulation starts from: the stage times of a run that was done, or of a YAML file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from sprec_ray.config.load import make_config, read_yaml
from sprec_ray.config.run import ConfigError, RunConfig
from sprec_ray.schedule.simulation import Layout, StageTimes, Workload, num_rows, simulate
from sprec_ray.storage.artifacts import Stage, read_json
from sprec_ray.storage.timeline import span_rows


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Stage times, the work that they are of, and where they were measured."""

    times: StageTimes
    work: Workload
    layout: Layout | None = None
    iteration_s: float | None = None
    """How long the run's iterations took; None where no run was measured."""


def read_measured(source: Path) -> Measured:
    """The stage times of a run's folder, or of a YAML file with the sections ``times`` and ``work``.

    Raises ConfigError for a run that is not far enough or whose stages shared processors, and for unknown keys.
    """
    if source.is_dir():
        return measure_run(source)
    values = read_yaml(source)
    if set(values) != {"times", "work"}:
        raise ConfigError(f"{source} must have the sections times and work, and no others")
    return Measured(
        times=_section(StageTimes, values["times"], source), work=_section(Workload, values["work"], source)
    )


def write_measured(measured: Measured, out: Path) -> None:
    """Write the stage times as a YAML file to change and read again."""
    import yaml

    values = {"times": dataclasses.asdict(measured.times), "work": dataclasses.asdict(measured.work)}
    out.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def measure_run(folder: Path) -> Measured:
    """The stage times of a run: means over its iterations but the first, which also loads what stays.

    What a run cannot tell apart stays together: a step's serial part is in the time per example, and is best measured
    with one worker.
    """
    config = _config(folder)
    rows = span_rows(folder)
    iterations = range(config.selfplay.num_iterations)
    later = iterations[1:]
    shared = not config.training.gpus_per_worker
    if shared and config.decoding.placement == "split":
        raise ConfigError(
            f"in {folder} decoding and training shared the processors; measure with decoding.placement=colocate"
        )
    work, training = _work(folder, config, later), config.training.num_workers
    layout = Layout(
        placement=config.decoding.placement, num_workers=training, num_decoders=config.decoding.num_decoders
    )

    def seconds(names: Iterable[str], kind: str) -> float:
        found = [row["duration"] for row in rows if row["kind"] == kind and row["name"] in set(names)]
        return fmean(found) if found else 0.0

    sft, preference = ([f"iteration {i}: {name}" for i in later] for name in ("sft", config.preference.loss))
    before = [f"iteration-{i - 1}" for i in later]  # the policies that these iterations measure
    tests = [f"{name}: test rows" for name in before]
    negatives = [f"iteration {i}: negatives" for i in later]
    swap = seconds([f"{name}: swap" for name in tests], "load")
    times = StageTimes(
        decode_s=seconds(negatives, "decode") / _one_decoder(work.num_examples, work, layout),
        test_decode_s=max(0.0, seconds(tests, "decode") - swap) / _one_decoder(work.num_test, work, layout),
        sft_s=seconds(sft, "compute") / num_rows(training, work.num_examples, work.sft_batch or 1, work.sft_epochs),
        preference_s=seconds(preference, "compute")
        / num_rows(training, work.num_groups, work.preference_batch, work.preference_epochs),
        sft_load_s=seconds(sft, "load"),
        preference_load_s=seconds(preference, "load"),
        swap_s=swap,
        launch_workers_s=seconds(["training workers"], "launch"),
        launch_decoders_s=seconds(["decoders"], "launch"),
        evaluate_s=seconds([f"{name}: grounding" for name in before], "evaluate"),
    )
    iteration_s = iteration_seconds(folder)
    # What no stage accounts for is the orchestration's.
    rest = max(0.0, iteration_s - simulate(times, work, layout).seconds)
    return Measured(times=dataclasses.replace(times, other_s=rest), work=work, layout=layout, iteration_s=iteration_s)


def _config(folder: Path) -> RunConfig:
    config = make_config(read_yaml(folder / "config.yaml"))
    if not (folder / "results.json").is_file() or config.selfplay.num_iterations < 2:
        raise ConfigError(f"{folder} must be a finished run of at least two iterations, the first is no typical one")
    if not config.selfplay.preference or config.selfplay.negatives == "random":
        raise ConfigError(f"{folder} decodes no negatives; simulate a run with selfplay.preference and negatives=beam")
    return config


def _work(folder: Path, config: RunConfig, iterations: Iterable[int]) -> Workload:
    counts = [Stage(folder / f"iteration-{i}" / "groups").summary["counts"] for i in iterations]
    num_test = read_json(folder / "data" / "counts.json")["test"]
    return Workload(
        num_examples=int(median(count["examples"] for count in counts)),
        num_groups=int(median(count["groups"] for count in counts)),
        num_test=num_test,
        chunk_size=config.decoding.chunk_size,
        sft_batch=config.selfplay_sft.global_batch_size if config.selfplay.sft else 0,
        preference_batch=config.preference.global_batch_size,
        sft_epochs=config.selfplay_sft.num_epochs,
        preference_epochs=config.preference.num_epochs,
    )


def _one_decoder(num_prompts: int, work: Workload, layout: Layout) -> int:
    """Prompts that the busiest decoder decodes one after the other."""
    chunks = -(-num_prompts // work.chunk_size)
    return min(num_prompts, -(-chunks // layout.num_decoders) * work.chunk_size)


def iteration_seconds(folder: Path) -> float:
    """How long a finished run's iterations took, from one policy to the next: the mean but for the first."""
    config = _config(folder)
    ends = {row["name"]: row["start"] + row["duration"] for row in span_rows(folder) if row["kind"] == "compute"}
    order = [ends[f"iteration {i}: {config.preference.loss}"] for i in range(config.selfplay.num_iterations)]
    return fmean(after - before for before, after in pairwise(order))


def _section(kind: type[Any], values: Any, source: Path) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(values, dict) or not set(values) <= names:
        raise ConfigError(f"{source}: {kind.__name__} has the keys {', '.join(sorted(names))}")
    try:
        return kind(**{name: float(value) if kind is StageTimes else int(value) for name, value in values.items()})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {error}") from None
