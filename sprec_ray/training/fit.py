"""The only training loop: supervised and preference phases on DeepSpeed, on any number of workers.

Dimensions: B groups, K = 1 + N responses per group.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from sprec_ray.training.adapters import (
    adapter_parameters,
    attach_adapter,
    load_language_model,
    read_adapter,
    set_adapter,
    without_adapter,
    write_adapter,
)
from sprec_ray.training.batches import Step, accumulation, learning_rate, plan_steps
from sprec_ray.training.engine import make_engine, set_learning_rate, whole_parameters
from sprec_ray.training.losses import PREFERENCE_LOSSES, preference_metrics
from sprec_ray.training.phase import Phase, TokenGroup
from sprec_ray.training.scoring import ResponseScorer, check_scorer, make_scoring_batch

Progress = Callable[[int, int, float], None]
"""Called by rank 0 with (step, number of steps, loss)."""


@dataclass(frozen=True, slots=True)
class Worker:
    """This process among the workers of a phase."""

    rank: int
    world_size: int
    device: torch.device


def run_phase(phase: Phase, groups: Sequence[TokenGroup], worker: Worker, progress: Progress) -> dict[str, Any]:
    """Train on the groups and write the adapter (or model) to ``phase.out``; the summary is the same on every worker.

    The summary holds ``steps`` (one dict of metrics per optimizer step), ``load_s`` and ``compute_s`` (seconds), and
    a ``canary``: one row with its log-probability under the trained policy, for the decoders to be checked against.
    Raises RuntimeError when the first preference batch does not give the loss of policy = reference where it must.
    """
    started = time.monotonic()
    model = _load_model(phase, groups[0])
    settings = phase.optimization
    micro_batch_size = min(settings.micro_batch_size, settings.global_batch_size)
    engine = make_engine(
        ResponseScorer(model),
        phase.training,
        micro_batch_size=micro_batch_size,
        accumulation=accumulation(settings.global_batch_size, micro_batch_size, worker.world_size),
        device=worker.device,
    )
    loaded = time.monotonic()
    references = _score_reference(phase, engine, model, groups, worker) if phase.preference else None
    steps = plan_steps(
        [group.num_tokens for group in groups],
        num_epochs=settings.num_epochs,
        global_batch_size=settings.global_batch_size,
        micro_batch_size=micro_batch_size,
        seed=phase.seed,
        worker=(worker.rank, worker.world_size),
    )
    engine.train()
    torch.manual_seed(phase.seed + worker.rank)
    history = []
    for index, step in enumerate(steps):
        rate = learning_rate(index, len(steps), peak=settings.learning_rate, num_warmup_steps=settings.num_warmup_steps)
        set_learning_rate(engine, rate)
        metrics = _train_step(phase, engine, step, groups, references, worker)
        if index == 0 and phase.preference and phase.reference_adapter == phase.init_adapter:
            _check_first_loss(metrics["loss"], step, groups, phase.dtype)
        history.append({**metrics, "learning_rate": rate})
        if worker.rank == 0:
            progress(index + 1, len(steps), metrics["loss"])
    canary = _canary(engine, groups[0], worker)
    _save(phase, model, worker)
    engine.destroy()
    return {
        "steps": history,
        "load_s": loaded - started,
        "compute_s": time.monotonic() - loaded,
        "num_groups": len(groups),
        "canary": canary,
    }


def _load_model(phase: Phase, row: TokenGroup) -> Any:
    model = load_language_model(phase.model_path, dtype=phase.dtype, trust_remote_code=phase.trust_remote_code)
    check_scorer(model, row.prompt[-16:], row.responses[0][:4])
    if phase.lora is not None:
        dropout = 0.0 if phase.preference else phase.lora.dropout
        model = attach_adapter(model, phase.lora, dropout=dropout, seed=phase.seed)
        if phase.init_adapter is not None:
            set_adapter(model, read_adapter(phase.init_adapter))
    if phase.training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def _score(engine: Any, groups: Sequence[TokenGroup], device: torch.device) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the groups' responses, [B, K], and the mask of those that exist."""
    rows = [(group.prompt, response) for group in groups for response in group.responses]
    logps_R = engine(make_scoring_batch(rows, device=device))
    counts = [len(group.responses) for group in groups]
    mask_BK = torch.arange(max(counts), device=device)[None] < torch.tensor(counts, device=device)[:, None]
    return torch.zeros(mask_BK.shape, device=device).masked_scatter(mask_BK, logps_R), mask_BK


def _train_step(
    phase: Phase,
    engine: Any,
    step: Step,
    groups: Sequence[TokenGroup],
    references: Sequence[Tensor] | None,
    worker: Worker,
) -> dict[str, float]:
    """One optimizer step; returns means over the whole global batch."""
    preference = phase.preference
    # SFT averages over response tokens, preference training over groups, each over the batch of all workers.
    denominator = len(step.rows) if preference else sum(len(groups[row].responses[0]) for row in step.rows)
    totals: dict[str, Tensor] = {}
    for micro_batch in step.micro_batches:
        rows = [step.rows[0] if row is None else row for row in micro_batch]
        weight = 0.0 if micro_batch[0] is None else 1.0
        policy_BK, mask_BK = _score(engine, [groups[row] for row in rows], worker.device)
        if preference is None:
            values = {"loss": -policy_BK[:, 0]}
        else:
            assert references is not None
            reference_BK = torch.nn.utils.rnn.pad_sequence([references[row] for row in rows], batch_first=True)
            reference_BK = reference_BK.to(worker.device)
            loss_B = PREFERENCE_LOSSES[preference.loss](policy_BK, reference_BK, mask_BK, beta=preference.beta)
            with torch.no_grad():
                extra = preference_metrics(policy_BK, reference_BK, mask_BK, beta=preference.beta)
            values = {"loss": loss_B, **extra}
        loss = weight * values["loss"].sum() / denominator
        # DeepSpeed averages over workers and micro-batches; the sum over the global batch is what we want.
        engine.backward(loss * (worker.world_size * len(step.micro_batches)))
        engine.step()
        for name, value_B in values.items():
            totals[name] = totals.get(name, torch.zeros((), device=worker.device)) + weight * value_B.detach().sum()
    summed = torch.stack(list(totals.values())) / denominator
    if worker.world_size > 1:
        dist.all_reduce(summed)
    means = dict(zip(totals, summed.tolist(), strict=True))
    if not math.isfinite(means["loss"]):
        raise RuntimeError(f"the loss became {means['loss']}; lower the learning rate")
    return means


def _score_reference(
    phase: Phase, engine: Any, model: Any, groups: Sequence[TokenGroup], worker: Worker
) -> list[Tensor]:
    """Reference log-probabilities of every group, [K] each, scored once by the engine that trains; kept on disk."""
    swap = phase.reference_adapter is not None and phase.reference_adapter != phase.init_adapter
    if swap:
        _swap_adapter(model, str(phase.reference_adapter))
    order = sorted(range(len(groups)), key=lambda row: groups[row].num_tokens)
    size = phase.optimization.micro_batch_size
    num_batches = -(-len(groups) // (size * worker.world_size))
    scored: dict[int, list[float]] = {}
    engine.eval()
    for index in range(num_batches):
        mine = order[index * size * worker.world_size :][: size * worker.world_size][worker.rank :: worker.world_size]
        rows = mine or order[:1]  # every worker takes part in every forward pass: ZeRO 3 gathers weights in it
        with torch.no_grad():
            if phase.reference_adapter is None:
                with without_adapter(model):
                    logps_BK, mask_BK = _score(engine, [groups[row] for row in rows], worker.device)
            else:
                logps_BK, mask_BK = _score(engine, [groups[row] for row in rows], worker.device)
        for row, logps_K, mask_K in zip(rows, logps_BK, mask_BK, strict=True):
            scored[row] = logps_K[mask_K].tolist()
    if swap:
        _swap_adapter(model, str(phase.init_adapter))
    if worker.world_size > 1:
        shards: list[dict[int, list[float]]] = [{} for _ in range(worker.world_size)]
        dist.all_gather_object(shards, scored)
        scored = {row: logps for shard in shards for row, logps in shard.items()}
    references = [torch.tensor(scored[row]) for row in range(len(groups))]
    if worker.rank == 0:
        Path(phase.out).mkdir(parents=True, exist_ok=True)
        padded = torch.nn.utils.rnn.pad_sequence(references, batch_first=True, padding_value=math.nan)
        save_file({"reference_logps_BK": padded}, Path(phase.out) / "reference_logps.safetensors")
    return references


def _swap_adapter(model: Any, path: str) -> None:
    with whole_parameters(list(adapter_parameters(model).values()), write=True):
        set_adapter(model, read_adapter(path))


def _check_first_loss(loss: float, step: Step, groups: Sequence[TokenGroup], dtype: str) -> None:
    """Policy = reference makes every reward 0, so the loss is the mean of log(1 + N); a wrong reference shows here."""
    expected = sum(math.log(len(groups[row].responses)) for row in step.rows) / len(step.rows)
    tolerance = 1e-3 if dtype == "float32" else 5e-2
    if abs(loss - expected) > tolerance:
        raise RuntimeError(
            f"the first preference loss is {loss:.4f}, but policy and reference are the same adapter, which gives "
            f"{expected:.4f}: the reference log-probabilities are not those of this policy"
        )


def _canary(engine: Any, group: TokenGroup, worker: Worker) -> dict[str, Any]:
    engine.eval()
    with torch.no_grad():
        logps_BK, _ = _score(engine, [TokenGroup(group.prompt, group.responses[:1])], worker.device)
    return {"prompt": list(group.prompt), "response": list(group.responses[0]), "logp": float(logps_BK[0, 0])}


def _save(phase: Phase, model: Any, worker: Worker) -> None:
    out = Path(phase.out)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with whole_parameters(trained):
        if worker.rank == 0 and phase.lora is not None:
            write_adapter(model, out)
        elif worker.rank == 0:
            model.save_pretrained(out, safe_serialization=True)
