"""A LoRA adapter read from its PEFT folder, checked against the model it is meant for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

_PREFIX = "base_model.model."
_UNSUPPORTED = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias")


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """The factors of an adapter by the name of the weight they change, ``model.layers.0.self_attn.q_proj.weight``."""

    rank: int
    scale: float
    """alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA."""
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    """A of shape [r, in] and B of shape [out, r]."""

    def merge(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """W + scale * B A, summed in float32 and rounded once; the weight itself where the adapter leaves it alone."""
        if name not in self.factors:
            return weight
        a, b = (factor.to(device=weight.device, dtype=torch.float32) for factor in self.factors[name])
        return (weight.float() + self.scale * (b @ a)).to(weight.dtype)


def read_lora(path: str, shapes: Mapping[str, tuple[int, ...]]) -> LoraWeights:
    """The adapter in a PEFT folder, for a model whose parameters have these names and shapes.

    Every tensor of the file must belong to a weight of the model: one that an engine would leave out without a word
    raises ValueError, as does a kind of adapter that the decoders cannot apply.
    """
    folder = Path(path)
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} is not an adapter: {error.filename or error} does not exist; train it again or correct the path"
        ) from None
    unsupported = [key for key in _UNSUPPORTED if config.get(key)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or unsupported:
        raise ValueError(
            f"{path}: the decoders apply plain LoRA without bias; train the adapter without "
            f"{', '.join(unsupported) or 'peft_type ' + str(config.get('peft_type')) + ' or bias'}"
        )
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    factors = {}
    for name in sorted({_weight_name(key, path) for key in tensors}):
        stem = _PREFIX + name.removesuffix(".weight")
        a, b = tensors.get(f"{stem}.lora_A.weight"), tensors.get(f"{stem}.lora_B.weight")
        if name not in shapes:
            raise ValueError(
                f"{path}: the model has no weight {name}; use the adapter with the model it was trained on"
            )
        if a is None or b is None or a.shape[0] != rank or (b.shape[0], a.shape[1]) != tuple(shapes[name]):
            raise ValueError(
                f"{path}: the factors of {name} do not fit a weight of shape {tuple(shapes[name])} at rank {rank}; "
                "use the adapter with the model it was trained on"
            )
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise ValueError(f"{path}: {name} holds NaN or infinity; train it again with a lower learning rate")
        factors[name] = (a, b)
    if not factors:
        raise ValueError(f"{path} holds no LoRA weights; train it again")
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return LoraWeights(rank=rank, scale=scale, factors=factors)


def parameter_shapes(config: Any, *, trust_remote_code: bool) -> Mapping[str, tuple[int, ...]]:
    """A model's parameters by name, from its configuration alone: what PEFT's names refer to.

    A loaded model may hold them fused (vLLM) or packed (4 bits).
    """
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return {name: tuple(weight.shape) for name, weight in skeleton.named_parameters()}


def _weight_name(key: str, path: str) -> str:
    for factor in (".lora_A.weight", ".lora_B.weight"):
        if key.startswith(_PREFIX) and key.endswith(factor):
            return key.removeprefix(_PREFIX).removesuffix(factor) + ".weight"
    raise ValueError(f"{path}: the decoders cannot apply the tensor {key}; train a plain LoRA adapter")
