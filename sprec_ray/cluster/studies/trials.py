"""Runs that Ray Tune schedules: a sweep's trials and a comparison's runs, never more at a time than fit the cluster."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.tune

from sprec_ray.cluster.studies.orphans import remove_orphaned_groups
from sprec_ray.cluster.studies.trial_process import TrialPlan, TrialProcess, error_file
from sprec_ray.reports.markup import cut

logger = logging.getLogger(__name__)

TUNE_FOLDER = "ray-tune"
_LOOK_EVERY_S = 5.0
MAX_ERROR_CHARS = 300


class OrphanRemoval(ray.tune.Callback):  # type: ignore[misc]
    """Frees what the process of a trial that was killed had reserved; the next one waits for it."""

    def __init__(self) -> None:
        self._next_look = 0.0

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Look now and then."""
        if time.monotonic() > self._next_look:
            remove_orphaned_groups()
            self._next_look = time.monotonic() + _LOOK_EVERY_S


def run_trials(
    plan: TrialPlan,
    space: Any,
    *,
    folder: Path,
    callbacks: Sequence[Any],
    at_a_time: int,
    max_failures: int,
    search: Mapping[str, Any],
) -> Any:
    """Let Tune run the trials of ``space``; returns its ResultGrid.

    Args:
        plan: what each trial is and does.
        space: Tune's values of ``parameters``.
        folder: of the sweep or comparison, for logs and Tune's own files.
        callbacks: Tune's, told of every trial.
        at_a_time: most trials side by side.
        max_failures: how often a trial that fails is started again.
        search: further fields of ``TuneConfig``: metric, mode, searcher, scheduler.

    Raises OSError when Ray kills a trial's process for memory, which Tune does not take for the trial's failure.
    """
    # Tune must not take Ctrl-C for itself: the job ends with it, and continues with the same command.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # TensorBoard's warns of every metric's name
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial's traceback is in its log
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the other output prints tables whatever its verbosity
    logger.info("%d trials at a time", at_a_time)
    shutil.rmtree(folder / TUNE_FOLDER, ignore_errors=True)
    trainable = ray.tune.with_parameters(TrialProcess, plan=plan, folder=str(folder))
    # Beside the driver, whose disk the runs are on; the CPUs and GPUs are the engines'.
    beside = {f"node:{ray.util.get_node_ip_address()}": 0.001}
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, ray.tune.PlacementGroupFactory([beside])),
        param_space={"parameters": space},
        tune_config=ray.tune.TuneConfig(max_concurrent_trials=at_a_time, reuse_actors=True, **search),
        run_config=ray.tune.RunConfig(
            name=TUNE_FOLDER,
            storage_path=str(folder),
            callbacks=[*callbacks, OrphanRemoval()],
            checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),  # runs keep their own state
            failure_config=ray.tune.FailureConfig(max_failures=max_failures),
            verbose=0,
        ),
    )
    try:
        return tuner.fit()
    except RuntimeError as error:
        if not isinstance(error.__cause__, ray.exceptions.OutOfMemoryError):
            raise
        raise OSError(
            "Ray ended processes because the machine ran out of memory; free some or lower max_concurrent_trials, then "
            "run the same command again, which continues"
        ) from error


def link_cache(runs: Path) -> None:
    """Let the runs below ``<output_dir>/<name>/<runs>`` share one cache with the other runs of ``output_dir``.

    So the small Llama and the stages of other sweeps, comparisons and runs serve these, and the reverse.
    """
    cache = runs / "cache"
    runs.mkdir(parents=True, exist_ok=True)
    if not cache.exists():
        (runs.parent.parent / "cache").mkdir(exist_ok=True)
        cache.symlink_to(Path("..", "..", "cache"))


def read_error(folder: Path, trial: str) -> str:
    """Why a trial of the sweep or comparison in ``folder`` ended, as one line; its log has the whole."""
    file = error_file(folder, trial)
    return one_line(file.read_text(encoding="utf-8")) if file.is_file() else "its process died"


def one_line(text: str) -> str:
    """What a page shows of an error: its first line, not too long. Ray's reports of lost processes fill pages."""
    first = " ".join(text.strip().partition("\n")[0].split())
    return cut(first, MAX_ERROR_CHARS)
