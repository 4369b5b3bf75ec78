"""Ray Train: one worker group that lives as long as the run and takes its phases from a mailbox.

Launching a worker group costs many seconds of imports whatever it then trains. A run has a dozen short phases, so the
workers of a single ``TorchTrainer.fit()`` loop over phases instead of being launched for each.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sprec_ray.cluster.engines.hardware import computes_on_gpu, environment
from sprec_ray.cluster.engines.mailbox import Mailbox
from sprec_ray.cluster.engines.progress import StepProgress
from sprec_ray.cluster.engines.reserved_trainer import ReservedTrainer
from sprec_ray.cluster.engines.tasks import ReadTask, TrainTask
from sprec_ray.cluster.engines.worker import work
from sprec_ray.config.run import TrainingConfig
from sprec_ray.storage.artifacts import write_bytes

logger = logging.getLogger(__name__)

_WAIT_S = 60.0
"""After this long without a sign of the workers the log says what the cluster has free."""

_LEAVE_S = 60.0
"""How long a session waits for its workers to leave when it is closed."""


class TrainingError(RuntimeError):
    """A phase failed on the workers; the message is theirs."""


class TrainingSession:
    """The worker group of a run. It is launched in the background by the constructor; ``close`` ends it."""

    def __init__(self, training: TrainingConfig, *, storage: Path) -> None:
        self._training = training
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._mailbox: Any = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
        self._resources = {"CPU": training.cpus_per_worker}
        if training.gpus_per_worker:
            self._resources["GPU"] = training.gpus_per_worker
        self._reserved = placement_group([self._resources] * training.num_workers)
        self._trainer: ReservedTrainer | None = None
        self._error: BaseException | None = None
        self._is_closing = False
        self._started_at, self._launch_told = time.time(), False
        self._thread = threading.Thread(target=self._fit, args=(storage,), name="ray-train", daemon=True)
        self._thread.start()

    def _fit(self, storage: Path) -> None:
        """Have the group run until it is closed, started again when its controller dies: that ends the workers too.

        Each ``fit`` counts the deaths of workers anew.
        """
        for _ in range(1 + self._training.max_failures):
            try:
                self._trainer = self._make_trainer(storage)
                self._trainer.fit()
                return
            except ray.exceptions.RayActorError as error:
                self._error = error
                if self._is_closing:
                    return
            except Exception as error:
                self._error = error
                return

    def _make_trainer(self, storage: Path) -> ReservedTrainer:
        training = self._training
        return ReservedTrainer(
            work,
            reserved=self._reserved,
            train_loop_config={"mailbox": self._mailbox, "training": training},
            torch_config=ray.train.torch.TorchConfig(
                backend="nccl" if computes_on_gpu(training.gpus_per_worker) else "gloo"
            ),
            scaling_config=ray.train.ScalingConfig(
                num_workers=training.num_workers,
                use_gpu=training.gpus_per_worker > 0,
                resources_per_worker=self._resources,
            ),
            run_config=ray.train.RunConfig(
                name=f"train-{uuid.uuid4().hex[:8]}",
                storage_path=str(storage.resolve()),
                failure_config=ray.train.FailureConfig(max_failures=training.max_failures),
                # Threads that spin while they wait make training hundreds of times slower beside a busy decoder.
                worker_runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE", **environment()}},
            ),
        )

    def submit(
        self, task: TrainTask | ReadTask, *, label: str, keep_state: Callable[[bytes], None] | None = None
    ) -> Future[dict[str, Any]]:
        """Queue a task; its summary arrives in the future, with the files of a TrainTask written to ``phase.out``.

        Tasks run one after another in the order submitted. ``keep_state`` is called with each state of the training.
        """
        index = ray.get(self._mailbox.post.remote([ray.put(task)]))  # the mailbox only holds it
        future: Future[dict[str, Any]] = Future()

        def wait() -> None:
            """Resolve the future, whatever happens: somebody waits for it."""
            try:
                future.set_result(self._result(task, index, label, keep_state))
            except (TrainingError, OSError) as error:
                future.set_exception(error)
            except Exception as error:
                future.set_exception(TrainingError(f"{label}: the training group was closed: {error}"))

        threading.Thread(target=wait, daemon=True).start()
        return future

    def run(
        self, task: TrainTask | ReadTask, *, label: str, keep_state: Callable[[bytes], None] | None = None
    ) -> dict[str, Any]:
        """Do a task and return its summary. Raises TrainingError with the workers' message when it fails."""
        return self.submit(task, label=label, keep_state=keep_state).result()

    def _result(
        self,
        task: TrainTask | ReadTask,
        index: int,
        label: str,
        keep_state: Callable[[bytes], None] | None,
    ) -> dict[str, Any]:
        status, result = self._follow(index, label, keep_state)
        if status == "failed":
            raise TrainingError(f"{label}: {result}")
        if isinstance(task, TrainTask):
            for name, content in result.pop("files").items():
                write_bytes(Path(task.phase.out) / name, content)
        summary: dict[str, Any] = result
        return summary

    def _follow(self, index: int, label: str, keep_state: Callable[[bytes], None] | None) -> tuple[str, Any]:
        """The outcome of a task, with a progress bar and its states kept meanwhile."""
        bar = StepProgress(label)
        num_saves = 0
        last, seen_at = None, time.monotonic()
        while True:
            outcome, progress, saves = ray.get(self._mailbox.poll.remote(index, num_saves, 0.5))
            if keep_state is not None and outcome is None and saves > num_saves:
                keep_state(ray.get(self._mailbox.state.remote(index)))
                num_saves = saves
            if progress != last:
                last, seen_at = progress, time.monotonic()
            elif time.monotonic() - seen_at > _WAIT_S:
                seen_at = time.monotonic()
                free = ray.available_resources()
                logger.warning("%s: no step in %.0f s; free in the cluster: %s", label, _WAIT_S, free)
            if progress is not None:
                bar.show(*progress)
            if outcome is None and not self._thread.is_alive():
                outcome = ("failed", f"the worker group ended: {self._error}")
            if outcome is None:
                continue
            bar.close(is_done=outcome[0] == "done")
            finished: tuple[str, Any] = outcome
            return finished

    def take_launch(self) -> tuple[float, float] | None:
        """When the launch began (seconds since the epoch) and how long it took; None when it was told before."""
        ready = ray.get(self._mailbox.ready_time.remote())
        if ready is None or self._launch_told:
            return None
        self._launch_told = True
        return self._started_at, ready - self._started_at

    def places(self) -> list[str]:
        """Where the workers run, by rank, once a task was done."""
        places: list[str] = ray.get(self._mailbox.where.remote())
        return places

    def close(self) -> None:
        """Let the workers leave once they have done what was submitted, or end them with a task unfinished.

        What they had reserved is free then, whatever has died meanwhile. Closing twice does nothing more.
        """
        self._is_closing = True
        try:
            with contextlib.suppress(ray.exceptions.RayActorError):  # of a mailbox that died the workers hear no more
                if ray.get(self._mailbox.is_idle.remote()):
                    ray.get(self._mailbox.post.remote(None))
                    self._thread.join(timeout=_LEAVE_S)
            deadline = time.monotonic() + _LEAVE_S
            while self._thread.is_alive() and time.monotonic() < deadline:
                if self._trainer is not None and self._trainer.controller is not None:
                    ray.kill(self._trainer.controller)
                self._thread.join(timeout=0.5)
        finally:
            remove_placement_group(self._reserved)
            ray.kill(self._mailbox)
