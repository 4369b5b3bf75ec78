"""How the vLLM engine is started, and how its weights are read again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch

from sprec_ray.decoding.engines.decoder_model import DecoderModel
from sprec_ray.decoding.engines.lora import LoraWeights
from sprec_ray.models.quantization import require


def set_environment() -> None:
    """What vLLM reads from the environment when it is imported; what a user has set stays."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = (
        "0"  # the engine lives in this process, where weights can be handed over
    )
    for name, value in (
        ("VLLM_LOGGING_LEVEL", "ERROR"),
        ("VLLM_NO_USAGE_STATS", "1"),
        ("DO_NOT_TRACK", "1"),
        ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),  # decoders share cores with trainers; OMP_NUM_THREADS says how many
    ):
        os.environ.setdefault(name, value)


def nf4_options(model: DecoderModel, config: Any, *, merge_adapters: bool) -> dict[str, str]:
    """What makes vLLM quantise the weights while it loads them, as transformers does: NF4, scales quantised again.

    The two give the same bytes only from the same numbers: vLLM takes the files' as they are, transformers casts them
    to ``model.dtype`` first. vLLM's 4-bit layers compute in bfloat16, and take no other.
    """
    assert not merge_adapters, "an adapter cannot become part of 4-bit weights"
    stored = getattr(config.get_text_config(), "dtype", None)
    for name, dtype in (("model.dtype", getattr(torch, model.dtype)), ("the model's config.json", stored)):
        if dtype not in (torch.bfloat16, None):
            raise ValueError(
                f"{name} says {str(dtype).removeprefix('torch.')}; with model.quantization=nf4 vLLM needs bfloat16, "
                "key and files: change it, or set decoding.engine=transformers"
            )
    require("bitsandbytes")
    require("vllm_bnb_plugin")  # vLLM moved its bitsandbytes support there; it registers itself
    return {"quantization": "bitsandbytes", "load_format": "bitsandbytes"}


def check_head_size(config: Any) -> None:
    """Raise ValueError for heads that vLLM's CPU attention cannot take: it would fail at the first prompt only."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    text = config.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    supported = CPUAttentionBackend.get_supported_head_sizes()
    if size not in supported:
        raise ValueError(
            f"vLLM on a CPU cannot attend with heads of size {size} (it can with {', '.join(map(str, supported))}); "
            "choose another number of heads, or set decoding.engine=transformers"
        )


def reload_weights(worker: Any, lora: LoraWeights | None) -> set[str]:
    """Read the model's files into the running engine again, the adapter added; return the names it was added to.

    vLLM's own reload runs its processing again: on a CPU the weights in use are packed copies for oneDNN, and writing
    to the parameters would change nothing.
    """
    from vllm.model_executor.model_loader import get_model_loader

    merged: set[str] = set()

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        loader = get_model_loader(worker.vllm_config.load_config)
        for name, weight in loader.get_all_weights(worker.model_config, worker.get_model()):
            if lora is not None and name in lora.factors:
                merged.add(name)
                weight = lora.merge(name, weight)
            yield name, weight

    worker.model_runner.reload_weights(weights_iterator=weights())
    return merged
