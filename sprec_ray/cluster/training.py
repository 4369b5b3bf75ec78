"""Ray Train: one worker group that lives as long as the run and takes its phases from a mailbox.

Launching a worker group costs many seconds of imports whatever it then trains. A run has a dozen short phases, so the
workers of a single ``TorchTrainer.fit()`` loop over phases instead of being launched for each.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from tqdm import tqdm

from sprec_ray.artifacts import read_json, read_rows
from sprec_ray.config import LoraConfig, TrainingConfig
from sprec_ray.data.tokens import TokenEncoder
from sprec_ray.training.phase import Phase
from sprec_ray.types import PreferenceGroup

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSettings:
    """How histories and titles become tokens; the arguments of TokenEncoder."""

    template: str
    noun: str
    max_prompt_tokens: int
    max_response_tokens: int

    def encoder(self, tokenizer: Any) -> TokenEncoder:
        """The encoder of a tokenizer."""
        return TokenEncoder(
            tokenizer,
            template=self.template,
            noun=self.noun,
            max_prompt_tokens=self.max_prompt_tokens,
            max_response_tokens=self.max_response_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTask:
    """A training phase and the file of PreferenceGroup rows it trains on."""

    phase: Phase
    rows_path: str
    text: TextSettings
    whole_text: bool = False
    """Every token but the first is a target: language-model pre-training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedTask:
    """Embed the texts of a JSON list with the policy's last hidden states, into a .npy file."""

    model_path: str
    dtype: str
    adapter: str | None
    lora: LoraConfig
    texts_path: str
    out: str


class TrainingError(RuntimeError):
    """A phase failed on the workers; the message is theirs."""


@ray.remote(num_cpus=0)
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
            try:
                await asyncio.wait_for(self.changed.wait_for(lambda: index in self.outcomes), timeout_s)
            except TimeoutError:
                pass
        return self.outcomes.get(index), self.progress.get(index)

    async def ready_time(self) -> float | None:
        return self.ready_at


def _work(settings: dict[str, Any]) -> None:
    """What every worker of the group runs: take a task, do it, until the mailbox says stop."""
    mailbox, training = settings["mailbox"], settings["training"]
    from transformers.utils import logging as transformers_logging

    from sprec_ray.training.fit import Worker  # after Ray Train has set up the process group

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    context = ray.train.get_context()
    worker = Worker(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    _init_deepspeed(training)
    index = ray.get(mailbox.first_unfinished.remote())
    while (task := ray.get(mailbox.take.remote(index))) is not None:
        dist.barrier()
        try:
            result = _do(task, worker, lambda *progress, index=index: mailbox.report.remote(index, progress))
        except (ValueError, RuntimeError) as error:
            logger.exception("task %d failed", index)
            ray.get(mailbox.finish.remote(index, ("failed", f"{type(error).__name__}: {error}")))
            raise  # the others may wait in a collective: only ending the group frees them
        ray.train.report({"task": index})
        if worker.rank == 0:
            ray.get(mailbox.finish.remote(index, ("done", result)))
        index += 1


def _init_deepspeed(training: TrainingConfig) -> None:
    on_gpu = training.gpus_per_worker > 0
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(training.num_threads or max(1, (os.cpu_count() or 1) // training.num_workers))
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    from sprec_ray.training.engine import init_distributed  # reads DS_ACCELERATOR when it is imported

    init_distributed(on_gpu=on_gpu)


def _do(task: Any, worker: Any, progress: Callable[[int, int, float], None]) -> dict[str, Any]:
    if isinstance(task, EmbedTask):
        return _embed(task, worker)
    from transformers import AutoTokenizer

    from sprec_ray.training.fit import run_phase
    from sprec_ray.training.phase import TokenGroup

    tokenizer = AutoTokenizer.from_pretrained(task.phase.model_path)
    encoder = task.text.encoder(tokenizer)
    groups = []
    for row in read_rows(Path(task.rows_path), PreferenceGroup):
        prompt = tuple(encoder.prompt(row.history))
        responses = tuple(tuple(encoder.response(title)) for title in (row.chosen, *row.rejected))
        if task.whole_text:
            prompt, responses = prompt[:1], (prompt[1:] + responses[0],)
        groups.append(TokenGroup(prompt, responses))
    summary = run_phase(task.phase, groups, worker, progress)
    if worker.rank == 0 and task.whole_text:
        tokenizer.save_pretrained(task.phase.out)
    return {
        **summary,
        "num_truncated_prompts": encoder.num_truncated_prompts,
        "num_truncated_responses": encoder.num_truncated_responses,
    }


def _embed(task: EmbedTask, worker: Any) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from sprec_ray.evaluation.embedding import embed_texts
    from sprec_ray.training.adapters import attach_adapter, load_language_model, read_adapter, set_adapter

    started = time.monotonic()
    model = load_language_model(task.model_path, dtype=task.dtype)
    if task.adapter is not None:
        model = attach_adapter(model, task.lora, dropout=0.0, seed=0)
        set_adapter(model, read_adapter(task.adapter))
    model.to(worker.device).eval()
    texts = read_json(Path(task.texts_path))
    mine = texts[worker.rank :: worker.world_size]
    tokenizer = AutoTokenizer.from_pretrained(task.model_path)
    vectors = embed_texts(model, tokenizer, mine, batch_size=64) if mine else None
    shards: list[Any] = [vectors]
    if worker.world_size > 1:
        shards = [None] * worker.world_size
        dist.all_gather_object(shards, vectors)
    if worker.rank == 0:
        width = next(shard.shape[1] for shard in shards if shard is not None)
        whole = np.zeros((len(texts), width), dtype=np.float32)
        for rank, shard in enumerate(shards):
            if shard is not None:
                whole[rank :: worker.world_size] = shard
        np.save(task.out, whole)
    return {"compute_s": time.monotonic() - started}


class TrainingSession:
    """The worker group of a run. It is launched in the background by the constructor; ``close`` ends it."""

    def __init__(self, training: TrainingConfig, *, storage: Path) -> None:
        self._training = training
        self._mailbox = _Mailbox.remote()
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
            _work,
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
        bar: tqdm[Any] | None = None
        while True:
            outcome, progress = ray.get(self._mailbox.poll.remote(index, 0.5))
            if progress is not None:
                bar = bar or tqdm(total=progress[1], desc=label, unit="step", mininterval=1.0)
                bar.set_postfix_str(f"loss {progress[2]:.3f}", refresh=False)
                bar.update(progress[0] - bar.n)
            if outcome is None and not self._thread.is_alive():
                outcome = ("failed", f"the worker group ended: {self._error}")
            if outcome is None:
                continue
            if bar is not None:
                if outcome[0] == "done":
                    bar.update(bar.total - bar.n)
                bar.close()
            if outcome[0] == "done":
                future.set_result(outcome[1])
            else:
                future.set_exception(TrainingError(f"{label}: {outcome[1]}"))
            return

    def take_launch(self) -> tuple[float, float] | None:
        """When the launch began (seconds since the epoch) and how long it took; None when it was told before."""
        ready = ray.get(self._mailbox.ready_time.remote())
        if ready is None or self._launch_told:
            return None
        self._launch_told = True
        return self._started_at, ready - self._started_at

    def close(self) -> None:
        """Let the workers leave, and wait for them."""
        ray.get(self._mailbox.post.remote(None))
        self._thread.join(timeout=60)
        ray.kill(self._mailbox)
