"""How much memory a training step takes, and the largest micro-batch that fits: a step is run without any numbers.

The model is built from its configuration as fake tensors, which have shapes but hold no memory. A forward and backward
pass over them allocates and frees what a real one would, recomputed activations and chunks of logits included.
"""

from __future__ import annotations

import copy
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from sprec_ray.models.adapters import attach_adapter
from sprec_ray.training.packing import PAD_MULTIPLE, Span, TokenGroup, pack
from sprec_ray.training.phase import Phase, Worker
from sprec_ray.training.scoring import ResponseScorer, ScoringBatch, why_not_shared
from sprec_ray.training.tree_attention import Layout

GIB = 2**30
NF4_BITS = 4.127
"""Per quantised weight: 4, a scale of 8 bits for 64 weights, and a scale of 32 bits for 256 of those."""
USABLE_GPU = 0.9
"""Share of a GPU's memory that is planned with; the rest is for CUDA's context, cuBLAS and fragmentation."""
USABLE_RAM = 0.2
"""The same on a CPU, where a process grows to 4 times what its tensors hold: glibc's malloc keeps what they free."""
_LIVE_WEIGHTS = 10**9
"""Weights that DeepSpeed's ZeRO 3 gathers on a worker at once (its default ``stage3_max_live_parameters``)."""
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of a worker's device in a phase whose groups are all as long as ``group`` and begin with other tokens."""

    weights: int
    """Of model and adapter; under ZeRO 3 this worker's share and what it gathers at once."""
    optimizer: int
    """Gradients, Adam's moments and ZeRO's copies of what is trained."""
    unpacked: int
    """The largest 4-bit weight as it is multiplied."""
    group: TokenGroup
    scorer: ResponseScorer
    fake: FakeTensorMode
    on_gpu: bool

    def activations(self, micro_batch_size: int) -> int:
        """Peak of what one forward and backward pass holds beside weights and optimizer."""
        parameters = list(self.scorer.parameters())
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        live = LiveBytes([*parameters, *gradients, *self.scorer.buffers()])
        try:
            with self.fake, live:
                self.scorer(self._batch(list(_apart(self.group, micro_batch_size)))).sum().backward()
        except RuntimeError as error:
            name, reason = type(self.scorer.causal_lm).__name__, str(error).split("\n", maxsplit=1)[0]
            raise ValueError(
                f"the memory of {name} cannot be planned ({reason}); set micro_batch_size to a number"
            ) from error
        return live.peak + self.unpacked

    def peak(self, micro_batch_size: int) -> int:
        """Bytes at the worst moment of a step."""
        return self.weights + self.optimizer + self.activations(micro_batch_size)

    def largest_micro_batch(self, available: int, *, most: int) -> int:
        """Groups per forward pass, at most ``most``, with which a step takes no more than ``available`` bytes.

        Raises ValueError with the remedies when not even one does.
        """
        if self.peak(most) <= available:
            return most
        largest = bisect_right(range(1, most), available, key=self.peak)
        if largest == 0:
            raise ValueError(
                f"a micro-batch of one group needs {self.peak(1) / GIB:.2f} GiB, and {available / GIB:.2f} GiB are "
                "free; set training.gradient_checkpointing=true, or training.zero_stage=2 with more workers, or lower "
                "model.max_prompt_tokens or selfplay.num_negatives"
            )
        return largest

    def _batch(self, groups: Sequence[TokenGroup]) -> ScoringBatch:
        if not (self.on_gpu and self.scorer.share_prompts):
            return self.scorer.batch(groups, _CPU)
        # FlexAttention does not run on fake tensors. It keeps what torch's kernel keeps of a single span: queries,
        # keys, values, outputs and one number per query.
        packed = pack(groups, pad_multiple=PAD_MULTIPLE)
        length = len(packed.end_T)
        layout = Layout(length, packed.answering_A, (Span(0, 0, length, (), is_chain=True),), (), None)
        inputs = {"input_ids": packed.input_ids_T[None], "position_ids": packed.position_ids_T[None], "layout": layout}
        return ScoringBatch(inputs, packed.answering_A, packed.targets)


def plan_memory(phase: Phase, config: Any, group: TokenGroup, *, num_workers: int, on_gpu: bool) -> MemoryPlan:
    """The plan of a phase; ``config`` is the model's for transformers. No weights are read."""
    model = _empty_model(phase, config, on_gpu=on_gpu)
    causal_lm = ResponseScorer(model).causal_lm
    scorer = ResponseScorer(model, share_prompts=why_not_shared(causal_lm, [group]) is None)
    weights, unpacked = _weight_bytes(scorer, phase, num_workers)
    trained = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        model.to_empty(device=_CPU)
        causal_lm.tie_weights()
        for weight in model.parameters():
            weight.grad = torch.empty_like(weight) if weight.requires_grad else None
    if phase.training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = _optimizer_bytes(trained, phase.training.zero_stage, num_workers)
    return MemoryPlan(weights, optimizer, unpacked, group, scorer.train(), fake, on_gpu)


def _empty_model(phase: Phase, config: Any, *, on_gpu: bool) -> Any:
    """The model of a phase with its adapter, on torch's meta device."""
    config = copy.deepcopy(config)
    if on_gpu and getattr(config, "attn_logit_softcapping", None) is not None:
        config.attn_logit_softcapping = None  # FlexAttention caps scores one by one, and never holds them all
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, phase.dtype), trust_remote_code=phase.trust_remote_code
        )
        if phase.lora is None:
            return model
        return attach_adapter(model, phase.lora, dropout=0.0 if phase.preference else phase.lora.dropout, seed=0)


def _weight_bytes(scorer: ResponseScorer, phase: Phase, num_workers: int) -> tuple[int, int]:
    """Bytes of all weights of a worker, and of the largest that is unpacked for its matrix product."""
    head = scorer.causal_lm.get_output_embeddings()
    layers = (layer for layer in scorer.modules() if isinstance(layer, nn.Linear) and layer is not head)
    packed = {layer.weight for layer in layers if phase.quantization == "nf4" and not layer.weight.requires_grad}
    whole = sum(weight.nbytes for weight in scorer.parameters() if weight not in packed)
    total = whole + round(sum(weight.numel() for weight in packed) * NF4_BITS / 8)
    if phase.training.zero_stage == 3:
        total = total // num_workers + min(total, _LIVE_WEIGHTS * getattr(torch, phase.dtype).itemsize)
    return total, max((weight.nbytes for weight in packed), default=0)


def _optimizer_bytes(trained: int, zero_stage: int, num_workers: int) -> int:
    """Bytes beside the float32 weights that are trained: gradients, and two moments of Adam.

    ZeRO divides the moments, a copy of the weights and averaged gradients among the workers. Its buckets hold more
    than an adapter has, so that even at stage 2 and 3 a worker has all gradients at the end of a backward pass.
    """
    return 3 * trained if zero_stage == 0 else trained + 4 * trained // num_workers


def _apart(group: TokenGroup, num_groups: int) -> Iterator[TokenGroup]:
    """Groups of the same lengths, in which no two prompts and no two responses of a prompt begin alike."""
    ids = count()

    def begin_anew(tokens: tuple[int, ...]) -> tuple[int, ...]:
        return (next(ids), *tokens[1:])

    for _ in range(num_groups):
        own_prompts = group.own_prompts and tuple(map(begin_anew, group.own_prompts))
        yield TokenGroup(begin_anew(group.prompt), tuple(map(begin_anew, group.responses)), own_prompts)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside ``with``, counts the bytes of the storages that are alive, but for those of ``known`` tensors."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._live = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._seen:
                storage = tensor.untyped_storage()
                self._seen.add(storage._cdata)
                self._live += storage.nbytes()
                weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self._live)
        return output

    def _forget(self, address: int, num_bytes: int) -> None:
        self._seen.discard(address)
        self._live -= num_bytes


def choose_micro_batch_size(phase: Phase, groups: Sequence[TokenGroup], worker: Worker) -> int:
    """The largest micro-batch that fits in what is free before the model is loaded, were all groups as the largest.

    Workers may differ; the least counts.
    """
    config = AutoConfig.from_pretrained(phase.model_path, trust_remote_code=phase.trust_remote_code)
    on_gpu, num_workers = worker.device.type == "cuda", worker.world_size
    plan = plan_memory(phase, config, largest_group(groups), num_workers=num_workers, on_gpu=on_gpu)
    most = -(-phase.optimization.global_batch_size // num_workers)
    return plan.largest_micro_batch(available_bytes(worker), most=most)


def largest_group(groups: Sequence[TokenGroup]) -> TokenGroup:
    """The longest prompt with the responses that are longest together: no group has more tokens."""
    prompt = max((group.prompt for group in groups), key=len)
    longest = max(groups, key=lambda group: group.num_tokens - len(group.prompt))
    return replace(longest, prompt=prompt)


def available_bytes(worker: Worker) -> int:
    """Bytes that a worker may still take: of its GPU, or its share of the machine's memory."""
    if worker.device.type == "cuda":
        torch.cuda.empty_cache()  # what torch keeps of an earlier phase is free
        return int(torch.cuda.mem_get_info(worker.device)[0] * USABLE_GPU)
    return int(psutil.virtual_memory().available * USABLE_RAM / worker.world_size)
