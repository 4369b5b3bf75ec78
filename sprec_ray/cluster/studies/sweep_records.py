"""What a sweep's trials left on disk, as the records of its report."""

from __future__ import annotations

from pathlib import Path

from sprec_ray.cluster.stages.run_data import evaluations_folder
from sprec_ray.cluster.stages.sharing import origin
from sprec_ray.config.sweep import ParameterConfig, SweepConfig, Trial, trial_command
from sprec_ray.reports.sweep.results import Status, SweepParameter, TrialRecord
from sprec_ray.storage.artifacts import MARKER, Stage, as_eval_result
from sprec_ray.storage.timeline import own_spans, read_timeline
from sprec_ray.types import EvalResult


def trial_record(
    sweep: SweepConfig, trial: Trial, folder: Path, *, status: Status = "unfinished", error: str = ""
) -> TrialRecord:
    """The record of a trial whose run is in ``folder``. It is finished when its results are there, else ``status``."""
    is_finished = (folder / f"results-{sweep.split}.json").is_file()
    shared = {
        marker.parent.relative_to(folder).as_posix(): run
        for marker in sorted(folder.rglob(MARKER))
        if (run := origin(marker.parent)) is not None
    }
    spans = read_timeline(folder)
    seconds: dict[str, float] = {}
    for span in own_spans(folder):
        seconds[span.kind] = seconds.get(span.kind, 0.0) + span.duration_s
    return TrialRecord(
        name=trial.name,
        parameters=trial.parameters,
        status="finished" if is_finished else status,
        error="" if is_finished else error,
        results=_results(sweep, trial, folder),
        seconds=seconds,
        total_s=max((span.start_s + span.duration_s for span in spans), default=0.0),
        shared=tuple(shared),
        shared_s=sum(_seconds_of(stage, run) for stage, run in shared.items()) if shared else None,
        command=trial_command(sweep, trial),
    )


def sweep_parameter(name: str, parameter: ParameterConfig) -> SweepParameter:
    """A parameter as the report shows it."""
    return SweepParameter(name=name, values=parameter.values, low=parameter.low, high=parameter.high, log=parameter.log)


def _results(sweep: SweepConfig, trial: Trial, folder: Path) -> tuple[EvalResult, ...]:
    labels = ["sft", *(f"iteration-{index}" for index in range(trial.config.selfplay.num_iterations))]
    stages = [Stage(folder / evaluations_folder(sweep.split) / label) for label in labels]
    return tuple(as_eval_result(stage.summary["result"]) for stage in stages if stage.is_finished)


def _seconds_of(stage: str, run: Path) -> float:
    """Seconds that a run spent on a stage, by the names of its spans."""
    return sum(span.duration_s for span in own_spans(run) if is_span_of(stage, span.name))


def is_span_of(stage: str, span: str) -> bool:
    """Whether a span is of a stage: ``iteration 0: softmax_dpo`` of ``iteration-0/preference``."""
    first, _, second = stage.partition("/")
    if first.startswith("evaluations"):
        return span.startswith(f"{second}: ")
    if not second:
        return span == first
    head, _, what = span.partition(": ")
    kind = {"sft": "sft", "negatives": "rollouts"}.get(what, "" if ": " in what else "preference")  # its loss's name
    return head == first.replace("-", " ") and kind == second
