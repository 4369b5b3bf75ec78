"""How much memory a training phase takes, from the model's configuration alone, and the micro-batch that fits.

The model is built on torch's meta device, which has shapes and no memory. A forward pass there shows what autograd
would keep for the backward pass. Nothing of it grows with the vocabulary: logits come in chunks of one size.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from sprec_ray.training.adapters import attach_adapter
from sprec_ray.training.packing import TokenGroup
from sprec_ray.training.phase import Phase, Worker
from sprec_ray.training.scoring import MAX_LOGITS, ResponseScorer, why_not_shared

NF4_BYTES = 4.127 / 8
"""Of a 4-bit weight: its scale takes 8 bits for 64 weights, and the scale of scales 32 bits for 256 of these."""
MARGIN = 1.15
"""For what the plan does not see. With it benchmarks/memory_plan.py finds 1.06 to 1.64 times the allocated peak."""
LOGIT_BYTES = 3 * 4
"""A float32 logit, its gradient and what the softmax makes on the way."""
_META = torch.device("meta")
_ATTENTION = "sprec_ray_planned"


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of a worker's device in a training phase."""

    weights: int
    trained: int
    """Trained parameters in float32, their gradients and both moments of Adam."""
    per_group: int
    logits_per_group: int
    """Of the answering positions; a micro-batch with more than MAX_LOGITS takes them in chunks."""

    def peak(self, micro_batch_size: int) -> int:
        """Bytes at the worst moment of a step."""
        logits = min(micro_batch_size * self.logits_per_group, LOGIT_BYTES * MAX_LOGITS)
        return round(self.weights + self.trained + MARGIN * (micro_batch_size * self.per_group + logits))

    def largest_micro_batch(self, available: int, *, most: int) -> int:
        """Groups per forward pass, at most ``most``, that fit into the bytes that are there.

        Raises ValueError when not even one does.
        """
        largest = bisect_right(range(1, most + 1), available, key=self.peak)
        if largest == 0:
            raise ValueError(
                f"a micro-batch of one group needs {_gib(self.peak(1))}, and {_gib(available)} are free; set "
                "training.gradient_checkpointing=true, raise training.zero_stage, or lower model.max_prompt_tokens or "
                "selfplay.num_negatives"
            )
        return largest


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def plan_memory(phase: Phase, config: Any, group: TokenGroup, *, num_workers: int) -> MemoryPlan:
    """The plan of a phase whose groups are all as long as this one and share no token.

    ``config`` is the model's configuration; no weights are read.
    """
    with _META:
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, phase.dtype), trust_remote_code=phase.trust_remote_code
        )
        sizes = {name: weight.numel() * weight.element_size() for name, weight in model.named_parameters()}
        weights = sum(sizes.values())
        if phase.quantization == "nf4":
            linear = {name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
            linear -= {name for name, layer in model.named_modules() if layer is model.get_output_embeddings()}
            packed = sum(model.get_parameter(f"{name}.weight").numel() for name in linear)
            weights += round(packed * NF4_BYTES) - sum(sizes[f"{name}.weight"] for name in linear)
        if phase.lora is not None:
            model = attach_adapter(model, phase.lora, dropout=0.0, seed=0)
    num_trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    stage = phase.training.zero_stage
    trained = num_trained * (4 / _share(stage, 3, num_workers) + 4 / _share(stage, 2, num_workers))
    trained += num_trained * 8 / _share(stage, 1, num_workers)
    causal_lm = model.get_base_model() if phase.lora is not None else model
    scorer = ResponseScorer(model, share_prompts=why_not_shared(causal_lm, [group]) is None)
    causal_lm.set_attn_implementation(_ATTENTION)
    one, two = (_kept(scorer, _apart([group] * groups)) for groups in (1, 2))
    num_tokens = group.num_tokens if scorer.share_prompts else len(group.responses) * group.num_positions
    element = torch.finfo(getattr(torch, phase.dtype)).bits // 8
    per_group = two - one
    # What a layer's backward pass holds beside what was kept: a few gradients as wide as its MLP.
    backward = 4 * num_tokens * getattr(config, "intermediate_size", 4 * config.hidden_size) * 4
    if phase.training.gradient_checkpointing:  # a layer's input is kept, and one layer's activations at a time
        inputs = config.num_hidden_layers * num_tokens * config.hidden_size * element
        per_group = inputs + per_group // config.num_hidden_layers
    return MemoryPlan(
        weights=round(weights / _share(stage, 3, num_workers)),
        trained=round(trained),
        per_group=per_group + backward,
        logits_per_group=LOGIT_BYTES * config.vocab_size * sum(map(len, group.responses)),
    )


def _share(stage: int, since: int, num_workers: int) -> int:
    """The workers among which ZeRO divides what it divides since some stage."""
    return num_workers if stage >= since else 1


def _apart(groups: Sequence[TokenGroup]) -> list[TokenGroup]:
    """Groups of the same lengths in which every token is another."""
    tokens = count(1)

    def fresh(old: Sequence[int]) -> tuple[int, ...]:
        return tuple(next(tokens) for _ in old)

    return [TokenGroup(fresh(group.prompts[0]), tuple(map(fresh, group.responses))) for group in groups]


def _kept(scorer: ResponseScorer, groups: Sequence[TokenGroup]) -> int:
    """Bytes that autograd keeps of a forward pass of the groups, logits aside."""
    parameters = {weight.untyped_storage()._cdata for weight in scorer.parameters()}
    vocabulary = scorer.causal_lm.config.vocab_size
    kept: dict[int, Tensor] = {}  # by storage: views of one are kept once

    def keep(tensor: Tensor) -> Tensor:
        if tensor.shape[-1:] != (vocabulary,) and tensor.untyped_storage()._cdata not in parameters:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scorer(scorer.batch(groups, _META))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


class _PlannedAttention(torch.autograd.Function):
    """Keeps what FlexAttention and the CPU's kernel keep: queries, keys, values, outputs and a number per query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output


def _planned_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **_: Any
) -> tuple[Tensor, None]:
    output: Tensor = _PlannedAttention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(_ATTENTION, _planned_attention)


def choose_micro_batch_size(phase: Phase, groups: Sequence[TokenGroup], worker: Worker) -> int:
    """The largest micro-batch for these groups in the memory that is free now, before the model is loaded."""
    config = AutoConfig.from_pretrained(phase.model_path, trust_remote_code=phase.trust_remote_code)
    plan = plan_memory(phase, config, max(groups, key=lambda group: group.num_tokens), num_workers=worker.world_size)
    if worker.device.type == "cuda":
        available = 0.9 * torch.cuda.mem_get_info(worker.device)[0]
    else:
        # A process keeps up to four times what it has allocated at a time (benchmarks/memory_plan.py).
        available = 0.25 * psutil.virtual_memory().available / worker.world_size
    settings = phase.optimization
    return plan.largest_micro_batch(round(available), most=-(-settings.global_batch_size // worker.world_size))
