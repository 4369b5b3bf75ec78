"""vLLM's model as a tree of tokens, below its scheduler; only this folder imports vLLM.

An engine request costs more than a beam's token (0.45 ms against less than 0.1 on a small model), and a search asks for
one token at a time. So the search's forward passes go to the engine's own model, with its weights, kernels, adapters
and tensor parallelism; only the attention is ``TreeRows``', over keys and values of its own. It rests on names inside
vLLM, and therefore on its version: another one is searched by requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sprec_ray.decoding.arrays import Floats, Longs
from sprec_ray.decoding.tree.interface import NewTokens, Wanted
from sprec_ray.decoding.tree.last_layer import Read, skip_unread
from sprec_ray.decoding.tree.rows import KeyValues, TreeRows

VERSION = "0.32.0"
"""The version whose inside this module knows."""


class VllmTree:
    """A ``TreeModel`` over the engine's workers; with tensor parallelism each holds the tree of its own heads."""

    def __init__(self, llm: Any, *, num_rows: int, lora_request: Any) -> None:
        self.num_rows = num_rows
        self._llm = llm
        llm.collective_rpc(_begin, args=(num_rows, lora_request))

    def open(self, rows: Longs, prompts: Sequence[Sequence[int]], wanted: Wanted) -> Floats:
        """See ``TreeModel.open``."""
        logps: Floats = self._first("open", rows, prompts, wanted)
        return logps

    def grow(self, new: NewTokens, wanted: Wanted) -> tuple[Longs, Floats]:
        """See ``TreeModel.grow``."""
        found: tuple[Longs, Floats] = self._first("grow", new, wanted)
        return found

    def prune(self, row_E: Longs, slot_E: Longs) -> None:
        """See ``TreeModel.prune``."""
        self._first("prune", row_E, slot_E)

    def _first(self, name: str, *arguments: Any) -> Any:
        return self._llm.collective_rpc(_call, args=(name, *arguments))[0]


@contextmanager
def vllm_tree(llm: Any, *, num_rows: int, lora_request: Any) -> Iterator[VllmTree]:
    """The engine's model as a tree while the block lasts; no request may run meanwhile."""
    has_failed = True
    try:
        yield VllmTree(llm, num_rows=num_rows, lora_request=lora_request)
        has_failed = False
    finally:
        llm.collective_rpc(_end)
        if has_failed:  # NaN in the memory would spoil later searches: hidden it still is 0 times NaN
            llm.collective_rpc(forget_memory)


def why_not_tree(llm: Any) -> str | None:
    """Why this engine is searched by requests; None when it need not be."""
    import vllm

    if vllm.__version__ != VERSION:
        return f"vLLM is {vllm.__version__}, and its inside is known of {VERSION}"
    return next((reason for reason in llm.collective_rpc(_why_not) if reason), None)


def _attention_layers(worker: Any) -> dict[str, Any]:
    layers: dict[str, Any] = worker.vllm_config.compilation_config.static_forward_context
    return layers


def _why_not(worker: Any) -> str | None:
    """Attention that ``TreeRows.attend`` does not compute."""
    from vllm.model_executor.layers.attention import Attention
    from vllm.v1.attention.backend import AttentionType

    if worker.vllm_config.parallel_config.pipeline_parallel_size > 1:
        return "its layers are spread over devices"
    for name, layer in _attention_layers(worker).items():
        if type(layer) is not Attention or layer.attn_type != AttentionType.DECODER:
            return f"{name} is no plain attention"
        odd = [key for key in ("alibi_slopes", "sinks") if getattr(layer.impl, key, None) is not None]
        if odd or layer.kv_sharing_target_layer_name is not None:
            return f"{name} has {odd[0] if odd else 'the keys of another layer'}"
    return None


def _begin(worker: Any, num_rows: int, lora_request: Any) -> None:
    """Make a worker's tree and put its attention into the model's layers."""
    from vllm.forward_context import set_forward_context

    runner = worker.model_runner
    model = runner.get_model()

    @torch.inference_mode()
    def forward(ids_T: Tensor, positions_T: Tensor, keep_A: Tensor) -> Tensor:
        if worker.vllm_config.lora_config is not None:
            adapter = (0,) if lora_request is None else (lora_request.lora_int_id,)
            requests = set() if lora_request is None else {lora_request}
            runner._set_active_loras(adapter * len(keep_A), adapter * len(ids_T), requests)
        read.expect(keep_A, len(ids_T))
        with set_forward_context(None, worker.vllm_config, num_tokens=len(ids_T)):
            hidden = model(input_ids=ids_T, positions=positions_T, intermediate_tensors=None, inputs_embeds=None)
            logits: Tensor = model.compute_logits(hidden[keep_A])
        return logits

    # The buffers of the LoRA kernels are as long as the scheduler's largest batch.
    most = worker.vllm_config.scheduler_config.max_num_batched_tokens
    device = torch.device(runner.device)
    memory = worker.__dict__.setdefault("sprec_ray_memory", KeyValues())
    worker.sprec_ray_tree = TreeRows(forward, num_rows=num_rows, device=device, max_tokens=most, memory=memory)
    read, worker.sprec_ray_skipping = Read(), ExitStack()
    if worker.vllm_config.lora_config is None:  # its kernels are told of all tokens
        layers = getattr(getattr(model, "model", None), "layers", [None])
        worker.sprec_ray_skipping.enter_context(skip_unread(layers[-1], read))
    for name, layer in _attention_layers(worker).items():
        layer.forward = partial(_attend, worker.sprec_ray_tree, name, layer)


def _attend(
    tree: TreeRows, name: str, layer: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> Tensor:
    """What the layer's own ``forward`` returns, [T, H * D]."""
    output = tree.attend(
        name,
        query.view(-1, layer.num_heads, layer.head_size),
        key.view(-1, layer.num_kv_heads, layer.head_size),
        value.view(-1, layer.num_kv_heads, layer.head_size),
        scaling=layer.impl.scale,
        softcap=getattr(layer.impl, "logits_soft_cap", None) or None,
        window=layer.sliding_window,
    )
    return output.flatten(1)


def _call(worker: Any, name: str, *arguments: Any) -> Any:
    return getattr(worker.sprec_ray_tree, name)(*arguments)


def _end(worker: Any) -> None:
    """Give the layers their own attention back."""
    for layer in _attention_layers(worker).values():
        layer.__dict__.pop("forward", None)
    worker.__dict__.pop("sprec_ray_tree", None)
    worker.__dict__.pop("sprec_ray_skipping", ExitStack()).close()


def forget_memory(worker: Any) -> None:
    """Free what trees keep between searches."""
    worker.__dict__.pop("sprec_ray_memory", None)
