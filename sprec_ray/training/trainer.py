"""The forward passes and optimizer steps of a phase, the same on any number of workers.

Dimensions: B groups, K = 1 + N responses per group.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sprec_ray.models.adapters import adapter_parameters, read_adapter, set_adapter, without_adapter
from sprec_ray.training.batches import Step
from sprec_ray.training.deepspeed_engine import whole_parameters
from sprec_ray.training.losses import REFERENCE_FREE, GroupLogps, LossSettings, preference_loss, preference_metrics
from sprec_ray.training.packing import TokenGroup
from sprec_ray.training.phase import Phase, Worker
from sprec_ray.training.reference_cache import cache_key, read_references, write_references
from sprec_ray.training.scoring import ResponseScorer


@dataclass(frozen=True, slots=True)
class Trainer:
    """The forward passes and optimizer steps of a phase."""

    phase: Phase
    engine: Any
    scorer: ResponseScorer
    groups: Sequence[TokenGroup]
    worker: Worker
    micro_batch_size: int

    def step(self, step: Step, references: Sequence[Tensor]) -> dict[str, float]:
        """One optimizer step; returns means over the whole global batch."""
        # SFT averages over response tokens, each as often as its row weighs, preference training over groups; both over
        # the batch of all workers.
        in_sft, batch = self.phase.preference is None, [self.groups[row] for row in step.rows]
        denominator = sum(group.weight * len(group.responses[0]) for group in batch) or 1 if in_sft else len(batch)
        totals: dict[str, Tensor] = {}
        for micro_batch in step.micro_batches:
            rows = [step.rows[0] if row is None else row for row in micro_batch]
            weight = 0.0 if micro_batch[0] is None else 1.0
            values = self._losses(rows, references)
            loss = weight * values["loss"].sum() / denominator
            # DeepSpeed averages over workers and micro-batches; the sum over the global batch is what we want.
            self.engine.backward(loss * (self.worker.world_size * len(step.micro_batches)))
            self.engine.step()
            for name, value_B in values.items():
                total = totals.get(name, torch.zeros((), device=self.worker.device))
                totals[name] = total + weight * value_B.detach().sum()
        summed = torch.stack(list(totals.values())) / denominator
        if self.worker.world_size > 1:
            dist.all_reduce(summed)
        means = dict(zip(totals, summed.tolist(), strict=True))
        if not math.isfinite(means["loss"]):
            raise RuntimeError(f"the loss became {means['loss']}; lower the learning rate")
        return means

    def _losses(self, rows: Sequence[int], references: Sequence[Tensor]) -> dict[str, Tensor]:
        """The loss of each group and what is logged beside it, [B] each."""
        preference = self.phase.preference
        policy_BK = self._score([self.groups[row] for row in rows])
        if preference is None:
            weight_B = torch.tensor([self.groups[row].weight for row in rows], device=policy_BK.device)
            return {"loss": -weight_B * policy_BK[:, 0]}
        logps = self._group_logps(policy_BK, rows, references)
        settings = LossSettings(beta=preference.beta, margin=preference.margin, sft_coef=preference.sft_coef)
        with torch.no_grad():
            extra = preference_metrics(logps, settings)
        return {"loss": preference_loss(preference.loss, logps, settings), **extra}

    def _group_logps(self, policy_BK: Tensor, rows: Sequence[int], references: Sequence[Tensor]) -> GroupLogps:
        preference, device = self.phase.preference, policy_BK.device
        assert preference is not None
        groups = [self.groups[row] for row in rows]
        counts_BK = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor([len(response) for response in group.responses]) for group in groups], batch_first=True
        )
        reference_BK = torch.nn.utils.rnn.pad_sequence([references[row] for row in rows], batch_first=True)
        smoothing = [preference.label_smoothing if group.smoothing is None else group.smoothing for group in groups]
        return GroupLogps(
            policy_BK=policy_BK,
            reference_BK=reference_BK.to(device),
            mask_BK=(counts_BK > 0).to(device),
            num_tokens_BK=counts_BK.to(device),
            smoothing_B=torch.tensor(smoothing, device=device),
        )

    def _score(self, groups: Sequence[TokenGroup]) -> Tensor:
        logps_BK: Tensor = self.engine(self.scorer.batch(groups, self.worker.device))
        return logps_BK

    def check_first_loss(self, loss: float, step: Step, references: Sequence[Tensor]) -> None:
        """Raise RuntimeError when policy and reference are the same adapter and do not give the loss of that."""
        phase, preference = self.phase, self.phase.preference
        if preference is None or preference.loss in REFERENCE_FREE or phase.reference_adapter != phase.init_adapter:
            return
        same_BK = torch.nn.utils.rnn.pad_sequence([references[row] for row in step.rows], batch_first=True)
        settings = LossSettings(beta=preference.beta, margin=preference.margin, sft_coef=preference.sft_coef)
        expected = float(
            preference_loss(preference.loss, self._group_logps(same_BK, step.rows, references), settings).mean()
        )
        if abs(loss - expected) > (1e-3 if phase.dtype == "float32" else 5e-2) * max(1.0, abs(expected)):
            raise RuntimeError(
                f"the first preference loss is {loss:.4f}, but policy and reference are the same adapter, which gives "
                f"{expected:.4f}: the reference log-probabilities are not those of this policy"
            )

    def canary(self) -> dict[str, Any]:
        """One row with its log-probability under the trained policy."""
        prompt, response = self.groups[0].prompts[0], self.groups[0].responses[0]
        self.engine.eval()
        with torch.no_grad():
            logps_BK = self._score([TokenGroup(prompt, (response,))])
        return {"prompt": list(prompt), "response": list(response), "logp": float(logps_BK[0, 0])}

    def references(self, known: list[Tensor] | None = None) -> list[Tensor]:
        """Reference log-probabilities of every group, [K] each: zeros without a reference, else cached or scored.

        ``known`` are those of an interrupted session.
        """
        phase = self.phase
        if phase.preference is None or phase.preference.loss in REFERENCE_FREE:
            return [torch.zeros(len(group.responses)) for group in self.groups]
        found: list[Any] = [known]
        file = self._cache_file() if self.worker.rank == 0 and phase.cache is not None else None
        if known is None and file is not None and file.exists():
            found = [read_references(file, self.groups)]
        if self.worker.world_size > 1:
            dist.broadcast_object_list(found)
        references: list[Tensor] = found[0] or self._score_references()
        if self.worker.rank == 0:
            write_references(Path(phase.out) / "reference_logps.safetensors", references)
            if file is not None and not file.exists():
                write_references(file, references)
        return references

    def _cache_file(self) -> Path:
        phase, worker = self.phase, self.worker
        assert phase.cache is not None
        how = (phase.dtype, phase.quantization, worker.device.type, f"shared {self.scorer.share_prompts}")
        sizes = (f"micro-batch {self.micro_batch_size}", f"{worker.world_size} workers")
        key = cache_key(self.scorer.causal_lm.config, phase.reference_adapter, self.groups, how + sizes)
        return Path(phase.cache) / f"{key}.safetensors"

    def _score_references(self) -> list[Tensor]:
        """The reference's log-probabilities of every group, by the engine that trains."""
        phase, worker, model = self.phase, self.worker, self.scorer.model
        swap = phase.reference_adapter is not None and phase.reference_adapter != phase.init_adapter
        if swap:
            _swap_adapter(model, str(phase.reference_adapter))
        order = sorted(range(len(self.groups)), key=lambda row: self.groups[row].num_tokens)
        size = self.micro_batch_size * worker.world_size
        scored: dict[int, list[float]] = {}
        self.engine.eval()
        for first in range(0, len(order), size):
            mine = order[first : first + size][worker.rank :: worker.world_size]
            rows = mine or order[:1]  # every worker takes part in every forward pass: ZeRO 3 gathers weights in it
            adapter = without_adapter(model) if phase.reference_adapter is None else contextlib.nullcontext()
            with torch.no_grad(), adapter:
                logps_BK = self._score([self.groups[row] for row in rows])
            for row, logps_K in zip(rows, logps_BK.tolist(), strict=True):
                scored[row] = logps_K[: len(self.groups[row].responses)]
        if swap:
            _swap_adapter(model, str(phase.init_adapter))
        if worker.world_size > 1:
            shards: list[dict[int, list[float]]] = [{} for _ in range(worker.world_size)]
            dist.all_gather_object(shards, scored)
            scored = {row: logps for shard in shards for row, logps in shard.items()}
        return [torch.tensor(scored[row]) for row in range(len(self.groups))]


def _swap_adapter(model: Any, path: str) -> None:
    with whole_parameters(list(adapter_parameters(model).values()), write=True):
        set_adapter(model, read_adapter(path))
