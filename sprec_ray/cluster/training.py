"""Ray Train: one worker group that lives as long as the run and takes its phases from a mailbox.

Launching a worker group costs many seconds of imports whatever it then trains. A run has a dozen short phases, so the
workers of a single ``TorchTrainer.fit()`` loop over phases instead of being launched for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from tqdm import tqdm

from sprec_ray.cluster.worker import EmbedTask, TrainTask, work
from sprec_ray.config import TrainingConfig


class TrainingError(RuntimeError):
    """A phase failed on the workers; the message is theirs."""


class _Mailbox:
    """Tasks from the driver to the workers, results and progress back."""

    def __init__(self) -> None:
        self.tasks: list[Any] = []
        self.outcomes: dict[int, tuple[str, Any]] = {}
        self.progress: dict[int, tuple[int, int, float]] = {}
        self.ready_at: float | None = None
        self.changed = asyncio.Condition()

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def post(self, task: Any) -> int:
        self.tasks.append(task)
        await self._notify()
        return len(self.tasks) - 1

    async def first_unfinished(self) -> int:
        self.ready_at = self.ready_at or time.time()
        return next((index for index in range(len(self.tasks)) if index not in self.outcomes), len(self.tasks))

    async def is_idle(self) -> bool:
        return len(self.outcomes) == len(self.tasks)

    async def take(self, index: int) -> Any:
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.tasks) > index)
        return self.tasks[index]

    async def finish(self, index: int, outcome: tuple[str, Any]) -> None:
        # The first failure of a task is its cause; workers that lose their peers fail after it.
        self.outcomes.setdefault(index, outcome)
        await self._notify()

    async def report(self, index: int, progress: tuple[int, int, float]) -> None:
        self.progress[index] = progress

    async def poll(self, index: int, timeout_s: float) -> tuple[tuple[str, Any] | None, tuple[int, int, float] | None]:
        """The outcome, waited for at most ``timeout_s`` seconds, and the latest progress."""
        async with self.changed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait_for(lambda: index in self.outcomes), timeout_s)
        return self.outcomes.get(index), self.progress.get(index)

    async def ready_time(self) -> float | None:
        return self.ready_at


class TrainingSession:
    """The worker group of a run. It is launched in the background by the constructor; ``close`` ends it."""

    def __init__(self, training: TrainingConfig, *, storage: Path) -> None:
        self._training = training
        self._mailbox: Any = ray.remote(_Mailbox).options(num_cpus=0).remote()
        self._error: BaseException | None = None
        self._started_at, self._launch_told = time.time(), False
        self._thread = threading.Thread(target=self._fit, args=(storage,), name="ray-train", daemon=True)
        self._thread.start()

    def _fit(self, storage: Path) -> None:
        training = self._training
        resources = {"CPU": training.cpus_per_worker}
        if training.gpus_per_worker:
            resources["GPU"] = training.gpus_per_worker
        trainer = ray.train.torch.TorchTrainer(
            work,
            train_loop_config={"mailbox": self._mailbox, "training": training},
            torch_config=ray.train.torch.TorchConfig(backend="nccl" if training.gpus_per_worker else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=training.num_workers,
                use_gpu=training.gpus_per_worker > 0,
                resources_per_worker=resources,
            ),
            run_config=ray.train.RunConfig(
                name=f"train-{uuid.uuid4().hex[:8]}",
                storage_path=str(storage.resolve()),
                failure_config=ray.train.FailureConfig(max_failures=training.max_failures),
                # Threads that spin while they wait make training hundreds of times slower beside a busy decoder.
                worker_runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            self._error = error

    def submit(self, task: TrainTask | EmbedTask, *, label: str) -> Future[dict[str, Any]]:
        """Queue a task; its summary arrives in the future. Tasks run one after another in the order submitted."""
        index = ray.get(self._mailbox.post.remote(task))
        future: Future[dict[str, Any]] = Future()
        threading.Thread(target=self._wait, args=(index, label, future), daemon=True).start()
        return future

    def run(self, task: TrainTask | EmbedTask, *, label: str) -> dict[str, Any]:
        """Do a task and return its summary. Raises TrainingError with the workers' message when it fails."""
        return self.submit(task, label=label).result()

    def _wait(self, index: int, label: str, future: Future[dict[str, Any]]) -> None:
        """Resolve the future, whatever happens: somebody waits for it."""
        try:
            outcome = self._follow(index, label)
        except Exception as error:
            outcome = ("failed", f"the training group was closed: {error}")
        if outcome[0] == "done":
            future.set_result(outcome[1])
        else:
            future.set_exception(TrainingError(f"{label}: {outcome[1]}"))

    def _follow(self, index: int, label: str) -> tuple[str, Any]:
        """The outcome of a task, with a progress bar meanwhile."""
        bar: tqdm[Any] | None = None
        num_steps = 0
        while True:
            outcome, progress = ray.get(self._mailbox.poll.remote(index, 0.5))
            if progress is not None:
                step, num_steps, loss = progress
                bar = bar or tqdm(total=num_steps, desc=label, unit="step", mininterval=1.0)
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                bar.update(step - bar.n)
            if outcome is None and not self._thread.is_alive():
                outcome = ("failed", f"the worker group ended: {self._error}")
            if outcome is None:
                continue
            if bar is not None:
                if outcome[0] == "done":
                    bar.update(num_steps - bar.n)
                bar.close()
            finished: tuple[str, Any] = outcome
            return finished

    def take_launch(self) -> tuple[float, float] | None:
        """When the launch began (seconds since the epoch) and how long it took; None when it was told before."""
        ready = ray.get(self._mailbox.ready_time.remote())
        if ready is None or self._launch_told:
            return None
        self._launch_told = True
        return self._started_at, ready - self._started_at

    def close(self) -> None:
        """Let the workers leave once they have done what was submitted, or end them with a task unfinished."""
        if ray.get(self._mailbox.is_idle.remote()):
            ray.get(self._mailbox.post.remote(None))
            self._thread.join(timeout=60)
        ray.kill(self._mailbox)  # workers that still wait for it fail, and the group ends
