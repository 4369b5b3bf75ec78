"""The 4-bit base model of QLoRA (arXiv 2305.14314): how transformers is asked for it, by trainer and decoder alike."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import BitsAndBytesConfig

INSTALL = "install it with pip install 'sprec-ray[cuda]', or set model.quantization=none"


def quantized_loading(quantization: str, *, dtype: torch.dtype, device: torch.device | None) -> dict[str, Any]:
    """What ``from_pretrained`` is told besides path and dtype; nothing for ``none``.

    ``nf4``: every linear layer but the LM head holds 4-bit NormalFloat weights in blocks of 64, whose scales are
    quantised again to 8 bits (section 3 of the paper), and computes in ``dtype``. Weights are quantised while they are
    loaded, on ``device``, the same on every worker; the model stays there. Raises ValueError without bitsandbytes.
    """
    if quantization == "none":
        return {}
    assert quantization == "nf4"
    require("bitsandbytes")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config} | ({} if device is None else {"device_map": {"": device}})


def require(module: str) -> None:
    """Raise ValueError when a library that ``nf4`` needs is not installed."""
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"model.quantization=nf4 needs {module.replace('_', '-')}; {INSTALL}")
