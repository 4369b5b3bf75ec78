"""The process in which Ray Tune runs trials, one after the other; their engines stay alive where they fit the next."""

from __future__ import annotations

import dataclasses
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import ray.tune

from sprec_ray.cluster.engines.kept import KeptEngines
from sprec_ray.cluster.runs.results import write_results_of
from sprec_ray.cluster.runs.run import open_run, open_stages
from sprec_ray.config.sweep import SweepConfig, Trial, make_trial
from sprec_ray.storage.artifacts import write_text
from sprec_ray.types import EvalResult

logger = logging.getLogger(__name__)


class TrialStopped(Exception):
    """Raised inside a trial that the scheduler ends before its last iteration."""


class TrialPlan(Protocol):
    """What trials there are, and how each is run. It travels to the processes of the trials."""

    def trial(self, parameters: Mapping[str, Any]) -> Trial:
        """The trial that Tune's parameters stand for, its run in the right folder."""

    def run(self, trial: Trial, kept: KeptEngines, tell: Callable[[EvalResult], None]) -> None:
        """Run it to its end. ``tell`` is given what the scheduler decides on, and raises when the trial is stopped."""


@dataclasses.dataclass(frozen=True, slots=True)
class SweepPlan:
    """The trials of the sweep in ``folder``: measured on its split, without a report of their own."""

    sweep: SweepConfig
    folder: Path

    def trial(self, parameters: Mapping[str, Any]) -> Trial:
        """The trial with these parameters."""
        return place_trial(make_trial(self.sweep, parameters), self.folder)

    def run(self, trial: Trial, kept: KeptEngines, tell: Callable[[EvalResult], None]) -> None:
        """Run the trial, telling of every trained policy."""
        split = self.sweep.split
        with (
            open_run(trial.config) as folder,
            open_stages(trial.config, folder, split=split, kept=kept) as stages,
        ):
            stages.prepare()
            write_results_of(split, folder, stages.run(on_result=tell))


class TrialProcess(ray.tune.Trainable):  # type: ignore[misc]
    """Tune's view of a trial: one ``step`` per result that it tells of, and a last one with ``done``.

    The trial runs in a thread of its own and stands still between steps, so that nothing is computed for a policy
    before the scheduler has seen the one before it.
    """

    def setup(self, config: dict[str, Any], *, plan: TrialPlan, folder: str) -> None:
        """Begin the first trial of this process; its log is kept below ``folder``."""
        self._plan, self._folder, self._kept = plan, Path(folder), KeptEngines()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trial")
        self._log: logging.Handler | None = None
        self._running: Future[None] | None = None
        self._last: dict[str, Any] = {}
        self._begin(config["parameters"])

    def step(self) -> dict[str, Any]:
        """The next policy's metrics. Raises what ended the trial."""
        if self._running is None:
            running = self._running = self._thread.submit(self._run, self._trial)
            running.add_done_callback(lambda _: self._told.put(None))
        else:
            running = self._running
            self._may_go_on.release()
        result = self._told.get()
        if result is None:
            if (error := running.exception()) is not None:
                logger.error("%s failed", self._trial.name, exc_info=error)
                write_text(error_file(self._folder, self._trial.name), f"{type(error).__name__}: {error}\n")
                raise error
            return {**self._last, "done": True}
        self._last = {"iteration": num_iterations(result.label), "label": result.label, **result.metrics}
        return dict(self._last)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End this trial, which stands still or is over, and begin another one."""
        self._stop()
        if self._running is not None:
            self._running.exception()  # waits
        self._begin(new_config["parameters"])
        return True

    def cleanup(self) -> None:
        """End the trial and the engines."""
        self._stop()
        self._thread.shutdown(wait=False)
        self._kept.close()

    def _begin(self, parameters: Mapping[str, Any]) -> None:
        self._trial = self._plan.trial(parameters)
        self._told: queue.Queue[EvalResult | None] = queue.Queue()
        self._may_go_on, self._is_stopped = threading.Semaphore(0), False
        self._running, self._last = None, {}
        error_file(self._folder, self._trial.name).unlink(missing_ok=True)
        self._log_to(self._folder / "logs" / f"{self._trial.name}.log")
        logger.info("%s: process %d", self._trial.name, os.getpid())

    def _stop(self) -> None:
        self._is_stopped = True
        self._may_go_on.release()

    def _run(self, trial: Trial) -> None:
        if trial.config.decoding.placement == "sequential":
            self._kept.close()  # an earlier trial's engines would be in the way
        self._plan.run(trial, self._kept, self._tell)

    def _tell(self, result: EvalResult) -> None:
        self._told.put(result)
        self._may_go_on.acquire()
        if self._is_stopped:
            raise TrialStopped

    def _log_to(self, file: Path) -> None:
        package = logging.getLogger("sprec_ray")
        if self._log is not None:
            package.removeHandler(self._log)
            self._log.close()
        file.parent.mkdir(parents=True, exist_ok=True)
        self._log = logging.FileHandler(file, encoding="utf-8")
        self._log.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        package.addHandler(self._log)
        package.setLevel(logging.INFO)


def error_file(folder: Path, trial: str) -> Path:
    """Where the error is written that ended a trial of the sweep in ``folder``; absent when its process died."""
    return folder / "logs" / f"{trial}.error"


def place_trial(trial: Trial, folder: Path) -> Trial:
    """The trial with its run below the sweep's folder."""
    return dataclasses.replace(trial, config=dataclasses.replace(trial.config, output_dir=str(folder / "trials")))


def num_iterations(label: str) -> int:
    """How many self-play iterations a policy has had: 0 of ``sft``, 1 of ``iteration-0``."""
    return 0 if label == "sft" else int(label.rpartition("-")[2]) + 1
