"""What every worker of the training group runs: tasks, taken from a mailbox until it is closed."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from sprec_ray.artifacts import read_rows
from sprec_ray.cluster.hardware import computes_on_gpu, place
from sprec_ray.cluster.judgements import ScoreTask, judgement_tokens, score
from sprec_ray.cluster.parcel import Parcel, read_folder
from sprec_ray.config import LoraConfig, TrainingConfig
from sprec_ray.data.tokens import TokenEncoder
from sprec_ray.training.packing import TokenGroup
from sprec_ray.training.phase import Phase
from sprec_ray.types import JudgementGroup, PreferenceGroup

logger = logging.getLogger(__name__)

TrainRow = PreferenceGroup | JudgementGroup
"""What a phase trains on; all rows of a phase are of one kind."""


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
    """A training phase and the file of rows it trains on; paths are those of the driver's machine."""

    phase: Phase
    rows_path: str
    text: TextSettings
    judgements: bool = False
    """The rows are JudgementGroups, not PreferenceGroups."""
    whole_text: bool = False
    """Every token but the first is a target: language-model pre-training."""
    parcels: tuple[Parcel, ...] = ()
    """The files at these paths for workers on other machines; what has no parcel lies on all of them."""
    saved: bytes | None = None
    """The state to go on from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedTask:
    """Embed texts with the policy's last hidden states; the summary holds the ``vectors``, one row a text."""

    model_path: str
    dtype: str
    trust_remote_code: bool
    adapter: str | None
    lora: LoraConfig
    texts: tuple[str, ...]
    quantization: str = "none"
    parcels: tuple[Parcel, ...] = ()


ReadTask = EmbedTask | ScoreTask
"""What changes no policy."""


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

    def saved(self) -> bytes | None:
        """What a group that died had saved last."""
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
    from sprec_ray.training.engine import init_distributed  # reads DS_ACCELERATOR when it is imported

    init_distributed(on_gpu=on_gpu)


def _give_back_memory(worker: Any) -> None:
    """A decoder on the same GPU wakes next: what torch keeps of a phase that is over would be missing there."""
    if worker.device.type == "cuda":
        gc.collect()  # models and engines hold themselves in cycles
        torch.cuda.empty_cache()


def _do(task: Any, worker: Any, reports: _Reports) -> dict[str, Any]:
    if isinstance(task, EmbedTask):
        return _embed(task, worker)
    if isinstance(task, ScoreTask):
        is_pair = isinstance(task.groups[0], JudgementGroup)
        return score(task, worker, _places(task.parcels), judgement_tokens if is_pair else token_group)
    from transformers import AutoTokenizer

    from sprec_ray.training.fit import run_phase

    started = time.monotonic()
    place = _places(task.parcels)
    phase = dataclasses.replace(
        task.phase,
        model_path=place(task.phase.model_path),
        init_adapter=place(task.phase.init_adapter),
        reference_adapter=place(task.phase.reference_adapter),
        cache=task.phase.cache if os.path.isdir(task.phase.cache or "") else None,  # made by the driver, on its machine
    )
    tokenizer = AutoTokenizer.from_pretrained(phase.model_path, trust_remote_code=phase.trust_remote_code)
    encoder = task.text.encoder(tokenizer)
    file = Path(place(task.rows_path))
    if task.judgements:
        groups = [judgement_tokens(row, encoder) for row in read_rows(file, JudgementGroup)]
    else:
        groups = [token_group(row, encoder) for row in read_rows(file, PreferenceGroup)]
    if task.whole_text:
        groups = [TokenGroup(group.prompt[:1], (group.prompt[1:] + group.responses[0],)) for group in groups]
    with tempfile.TemporaryDirectory(prefix="sprec-ray-") as out:
        phase = dataclasses.replace(phase, out=out)
        summary = run_phase(
            phase, groups, worker, reports.progress, saved=reports.saved() or task.saved, save=reports.save
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


def _places(parcels: tuple[Parcel, ...]) -> Callable[[Any], Any]:
    """Where this machine has what the driver has at a path."""
    local = {parcel.path: parcel.local() for parcel in parcels}
    return lambda path: local.get(path, path)


def token_group(row: PreferenceGroup, encoder: TokenEncoder) -> TokenGroup:
    """The tokens of a row: every response whole, before them what of the history there is room for."""
    responses = tuple(tuple(encoder.response(title)) for title in (row.chosen, *row.rejected))
    prompt = encoder.prompt(row.history, candidates=row.candidates, room=encoder.room(responses))
    return TokenGroup(tuple(prompt), responses, smoothing=row.smoothing, weight=row.weight)


def _embed(task: EmbedTask, worker: Any) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from sprec_ray.evaluation.embedding import embed_texts
    from sprec_ray.training.adapters import load_policy

    started = time.monotonic()
    place = _places(task.parcels)
    model_path = place(task.model_path)
    model = load_policy(
        model_path,
        place(task.adapter),
        task.lora,
        dtype=task.dtype,
        quantization=task.quantization,
        device=worker.device,
        trust_remote_code=task.trust_remote_code,
    )
    mine = task.texts[worker.rank :: worker.world_size]
    tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=task.trust_remote_code)
    vectors = embed_texts(model, tokenizer, mine, batch_size=64) if mine else None
    shards: list[Any] = [vectors]
    if worker.world_size > 1:
        shards = [None] * worker.world_size
        dist.all_gather_object(shards, vectors)
    width = next(shard.shape[1] for shard in shards if shard is not None)
    whole = np.zeros((len(task.texts), width), dtype=np.float32)
    for rank, shard in enumerate(shards):
        if shard is not None:
            whole[rank :: worker.world_size] = shard
    return {"vectors": whole, "compute_s": time.monotonic() - started}
