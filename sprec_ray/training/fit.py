"""The only training loop: supervised and preference phases on DeepSpeed, on any number of workers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sprec_ray.config.methods import PAIRWISE
from sprec_ray.models.adapters import attach_adapter, load_language_model, read_adapter, set_adapter, write_adapter
from sprec_ray.training.batches import Step, accumulation, learning_rate, plan_steps
from sprec_ray.training.deepspeed_engine import make_engine, set_learning_rate, whole_parameters
from sprec_ray.training.memory import choose_micro_batch_size
from sprec_ray.training.packing import TokenGroup
from sprec_ray.training.phase import Phase, Worker
from sprec_ray.training.scoring import ResponseScorer, make_scorer
from sprec_ray.training.state import TrainingState, capture, from_bytes, restore, state_key, to_bytes
from sprec_ray.training.trainer import Trainer

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, float], None]
"""Called by rank 0 with (step, number of steps, loss)."""

Save = Callable[[bytes], None]
"""Called by rank 0 with the state after every ``training.save_steps`` steps."""


def run_phase(
    phase: Phase,
    groups: Sequence[TokenGroup],
    worker: Worker,
    progress: Progress,
    *,
    saved: bytes | None = None,
    save: Save | None = None,
) -> dict[str, Any]:
    """Train on the groups and write the adapter (or model) to ``phase.out``; the summary is the same on every worker.

    ``saved`` is a state that an earlier call gave to ``save``: training goes on from there and, on as many workers,
    ends with the same numbers. A state of other groups or settings is left alone, with a warning.

    The summary holds ``steps`` (one dict of metrics per optimizer step), ``load_s`` and ``compute_s`` (seconds), the
    ``micro_batch_size``, and a ``canary``: one row with its log-probability under the trained policy, for the decoders
    to be checked against.
    Raises ValueError for groups that the phase cannot train on, and RuntimeError when the first preference batch does
    not give the loss of policy = reference where it must.
    """
    started = time.monotonic()
    check_groups(phase, groups)
    settings = phase.optimization
    micro_batch_size = _micro_batch_size(phase, groups, worker)
    scorer = _load_scorer(phase, groups, worker)
    engine = make_engine(
        scorer,
        phase.training,
        micro_batch_size=micro_batch_size,
        accumulation=accumulation(settings.global_batch_size, micro_batch_size, worker.world_size),
        device=worker.device,
    )
    loaded = time.monotonic()
    trainer = Trainer(phase, engine, scorer, groups, worker, micro_batch_size)
    key = state_key(phase, groups)
    state = None if saved is None else from_bytes(saved, key)
    if saved is not None and state is None:
        logger.warning("the saved state is of another phase: training starts from its beginning")
    references = trainer.references(None if state is None else state.references)
    steps = plan_steps(
        [group.num_tokens for group in groups],
        num_epochs=settings.num_epochs,
        global_batch_size=settings.global_batch_size,
        micro_batch_size=micro_batch_size,
        seed=phase.seed,
        worker=(worker.rank, worker.world_size),
    )
    begun = loaded - (0.0 if state is None else state.compute_s)

    def keep(history: list[dict[str, float]]) -> None:
        now = capture(
            engine,
            scorer.model,
            worker,
            history=history,
            compute_s=time.monotonic() - begun,
            references=references,
        )
        if worker.rank == 0 and save is not None:
            save(to_bytes(now, key))

    history = _train(trainer, steps, references, state, progress=progress, keep=keep if save is not None else None)
    canary = trainer.canary()
    _save(phase, scorer.model, worker)
    engine.destroy()
    return {
        "steps": history,
        "load_s": loaded - started,
        "compute_s": time.monotonic() - begun,
        "num_groups": len(groups),
        "num_trained_tokens": settings.num_epochs * sum(group.num_tokens for group in groups),
        "num_resumed_steps": 0 if state is None else len(state.history),
        "micro_batch_size": micro_batch_size,
        "canary": canary,
    }


def _train(
    trainer: Trainer,
    steps: Sequence[Step],
    references: Sequence[Tensor],
    state: TrainingState | None,
    *,
    progress: Progress,
    keep: Callable[[list[dict[str, float]]], None] | None,
) -> list[dict[str, float]]:
    """The metrics of all steps, those of an earlier session first."""
    phase, worker, engine = trainer.phase, trainer.worker, trainer.engine
    settings, every = phase.optimization, phase.training.save_steps
    engine.train()
    torch.manual_seed(phase.seed + worker.rank)
    history: list[dict[str, float]] = []
    if state is not None:
        set_learning_rate(engine, 0.0)
        trainer.step(steps[0], references)  # makes AdamW's tensors; all it changes is overwritten
        restore(engine, trainer.scorer.model, worker, state, seed=phase.seed)
        history = list(state.history)
    for index in range(len(history), len(steps)):
        rate = learning_rate(index, len(steps), peak=settings.learning_rate, num_warmup_steps=settings.num_warmup_steps)
        set_learning_rate(engine, rate)
        metrics = trainer.step(steps[index], references)
        if index == 0:
            trainer.check_first_loss(metrics["loss"], steps[index], references)
        history.append({**metrics, "learning_rate": rate})
        if worker.rank == 0:
            progress(index + 1, len(steps), metrics["loss"])
        if keep is not None and (index + 1) % every == 0 and index + 1 < len(steps):
            keep(list(history))
    return history


def check_groups(phase: Phase, groups: Sequence[TokenGroup]) -> None:
    """Raise ValueError for groups that are empty somewhere, or that the phase's preference loss cannot take."""
    for number, group in enumerate(groups):
        group.check()
        num_rejected = len(group.responses) - 1
        if phase.preference is not None and num_rejected == 0:
            raise ValueError(
                f"group {number} has no rejected response; preference.loss={phase.preference.loss} needs one"
            )
        if phase.preference is not None and phase.preference.loss in PAIRWISE and num_rejected > 1:
            raise ValueError(
                f"group {number} has {num_rejected} rejected responses, but preference.loss={phase.preference.loss} "
                "takes one; set preference.loss=softmax_dpo"
            )


def _micro_batch_size(phase: Phase, groups: Sequence[TokenGroup], worker: Worker) -> int:
    """The configured size, or the largest for which every worker has memory."""
    size = phase.optimization.micro_batch_size
    if size != "auto":
        return min(size, phase.optimization.global_batch_size)
    chosen = torch.tensor(choose_micro_batch_size(phase, groups, worker), device=worker.device)
    if worker.world_size > 1:
        dist.all_reduce(chosen, dist.ReduceOp.MIN)
    return int(chosen)


def _load_scorer(phase: Phase, groups: Sequence[TokenGroup], worker: Worker) -> ResponseScorer:
    model = load_language_model(
        phase.model_path,
        dtype=phase.dtype,
        quantization=phase.quantization,
        device=worker.device,
        trust_remote_code=phase.trust_remote_code,
    )
    if phase.lora is not None:
        dropout = 0.0 if phase.preference else phase.lora.dropout
        model = attach_adapter(model, phase.lora, dropout=dropout, seed=phase.seed)
        if phase.init_adapter is not None:
            set_adapter(model, read_adapter(phase.init_adapter))
    if phase.training.zero_stage < 3:  # stage 3 is for models of which a device holds only a part
        model.to(worker.device)
    scorer = make_scorer(model.eval(), groups)
    if phase.training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return scorer


def _save(phase: Phase, model: Any, worker: Worker) -> None:
    out = Path(phase.out)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with whole_parameters(trained):
        if worker.rank == 0 and phase.lora is not None:
            write_adapter(model, out)
        elif worker.rank == 0:
            model.save_pretrained(out, safe_serialization=True)
