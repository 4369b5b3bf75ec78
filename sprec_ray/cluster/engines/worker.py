"""What every worker of the training group runs: tasks, taken from a mailbox until it is closed."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from sprec_ray.cluster.engines.hardware import computes_on_gpu, place
from sprec_ray.cluster.engines.parcel import local_paths, read_folder
from sprec_ray.cluster.engines.read_tasks import embed, score
from sprec_ray.cluster.engines.row_tokens import row_tokens
from sprec_ray.cluster.engines.tasks import EmbedTask, ScoreTask, TrainRow
from sprec_ray.config.run import TrainingConfig
from sprec_ray.storage.artifacts import read_rows
from sprec_ray.training.packing import TokenGroup
from sprec_ray.types import JudgementGroup, PreferenceGroup

logger = logging.getLogger(__name__)


def work(settings: dict[str, Any]) -> None:
    """What every worker of the group runs: take a task, do it, until the mailbox says stop."""
    mailbox, training = settings["mailbox"], settings["training"]
    from transformers.utils import logging as transformers_logging

    from sprec_ray.training.phase import Worker  # after Ray Train has set up the process group

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    context = ray.train.get_context()
    on_gpu = computes_on_gpu(training.gpus_per_worker)
    device = ray.train.torch.get_device() if on_gpu else torch.device("cpu")
    worker = Worker(context.get_world_rank(), context.get_world_size(), device)
    ray.get(mailbox.arrive.remote(worker.rank, place()))
    _init_deepspeed(training)
    index = ray.get(mailbox.first_unfinished.remote())
    while (posted := ray.get(mailbox.take.remote(index))) is not None:
        dist.barrier()
        try:
            result = _do(ray.get(posted[0]), worker, _Reports(mailbox, index))
            _give_back_memory(worker)
        except (ValueError, RuntimeError) as error:
            if not _is_lost_peer(error):  # then Ray Train starts the group again, and it goes on from the saved state
                logger.exception("task %d failed", index)
                ray.get(mailbox.finish.remote(index, ("failed", f"{type(error).__name__}: {error}")))
            raise  # the others may wait in a collective: only ending the group frees them
        if worker.rank == 0:
            ray.get(mailbox.finish.remote(index, ("done", result)))
        index += 1


class _Reports:
    """What a task tells the driver while it runs, through the mailbox; states one at a time."""

    def __init__(self, mailbox: Any, index: int) -> None:
        self._mailbox, self._index = mailbox, index
        self._last_save: Any = None

    def progress(self, step: int, num_steps: int, loss: float) -> None:
        self._mailbox.report.remote(self._index, (step, num_steps, loss))

    def save(self, state: bytes) -> None:
        if self._last_save is not None:
            ray.get(self._last_save)
        self._last_save = self._mailbox.save.remote(self._index, state)

    def sent_state(self) -> bytes | None:
        """The state that a group that died had sent last: it is in the mailbox's memory, newer than what is kept."""
        state: bytes | None = ray.get(self._mailbox.state.remote(self._index))
        return state


def _is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another worker died. Gloo says so by a plain RuntimeError."""
    return (
        isinstance(error, dist.DistError) or "gloo/transport" in str(error) or "Connection closed by peer" in str(error)
    )


def _init_deepspeed(training: TrainingConfig) -> None:
    on_gpu = computes_on_gpu(training.gpus_per_worker)
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(training.num_threads or max(1, (os.cpu_count() or 1) // training.num_workers))
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    from sprec_ray.training.deepspeed_engine import init_distributed  # reads DS_ACCELERATOR when it is imported

    init_distributed(on_gpu=on_gpu)


def _give_back_memory(worker: Any) -> None:
    """A decoder on the same GPU wakes next: what torch keeps of a phase that is over would be missing there."""
    if worker.device.type == "cuda":
        gc.collect()  # models and engines hold themselves in cycles
        torch.cuda.empty_cache()


def _do(task: Any, worker: Any, reports: _Reports) -> dict[str, Any]:
    if isinstance(task, EmbedTask):
        return embed(task, worker)
    if isinstance(task, ScoreTask):
        return score(task, worker)
    from transformers import AutoTokenizer

    from sprec_ray.training.fit import run_phase

    started = time.monotonic()
    local = local_paths(task.parcels)
    phase = dataclasses.replace(
        task.phase,
        model_path=local(task.phase.model_path),
        init_adapter=local(task.phase.init_adapter),
        reference_adapter=local(task.phase.reference_adapter),
        cache=task.phase.cache if os.path.isdir(task.phase.cache or "") else None,  # made by the driver, on its machine
    )
    tokenizer = AutoTokenizer.from_pretrained(phase.model_path, trust_remote_code=phase.trust_remote_code)
    encoder = task.text.encoder(tokenizer)
    file = Path(local(task.rows_path))
    kind: type[TrainRow] = JudgementGroup if task.judgements else PreferenceGroup
    groups = [row_tokens(row, encoder) for row in read_rows(file, kind)]
    if task.whole_text:
        groups = [TokenGroup(group.prompt[:1], (group.prompt[1:] + group.responses[0],)) for group in groups]
    with tempfile.TemporaryDirectory(prefix="sprec-ray-") as out:
        phase = dataclasses.replace(phase, out=out)
        summary = run_phase(
            phase, groups, worker, reports.progress, saved=reports.sent_state() or task.kept_state, save=reports.save
        )
        if worker.rank == 0 and task.whole_text:
            tokenizer.save_pretrained(out)
        files = read_folder(out) if worker.rank == 0 else {}
    return {
        **summary,
        "files": files,
        "load_s": time.monotonic() - started - summary["compute_s"],
        "num_truncated_prompts": encoder.num_truncated_prompts,
        "num_long_responses": encoder.num_long_responses,
    }
