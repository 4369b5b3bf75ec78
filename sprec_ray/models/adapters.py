"""The language model and its LoRA adapter: loading, attaching, reading and writing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from sprec_ray.config.run import LoraConfig
from sprec_ray.models.quantization import quantized_loading

WEIGHTS = "adapter_model.safetensors"


def load_language_model(
    path: str,
    *,
    dtype: str,
    quantization: str = "none",
    device: torch.device | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The causal language model of a folder or hub name, in evaluation mode: on the CPU, or in 4 bits on ``device``.

    Raises ValueError for ``nf4`` without bitsandbytes.
    """
    # PEFT's prepare_model_for_kbit_training is not called. It freezes the base, as attach_adapter does. It asks the
    # embeddings for gradients, which only re-entrant checkpointing needs. And it casts norms, embeddings and LM head
    # to float32: Llama's norms compute in float32 anyway, and the decoders hold those weights in model.dtype, so
    # trainer and decoder would score one response differently.
    model: Any = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        **quantized_loading(quantization, dtype=getattr(torch, dtype), device=device),
    )
    if getattr(model.config, "attn_logit_softcapping", None) is not None:
        model.set_attn_implementation("eager")  # Gemma 2's cap, which transformers' default attention leaves out
    return model


def attach_adapter(model: Any, lora: LoraConfig, *, dropout: float, seed: int) -> Any:
    """The model with a fresh adapter (B = 0, so that it changes nothing yet); only the adapter is trainable.

    Adapter weights are float32 whatever the model's dtype, so that small updates are not rounded away.
    Raises ValueError when ``target_modules`` names nothing in the model.
    """
    torch.manual_seed(seed)
    config = PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=dropout,
        target_modules=list(lora.target_modules),
        task_type="CAUSAL_LM",
    )
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    missing = [target for target in lora.target_modules if target not in names]
    if missing:
        raise ValueError(f"model.lora.target_modules: the model has no module named {', '.join(missing)}")
    return get_peft_model(model, config)


def load_policy(
    path: str,
    adapter: str | None,
    lora: LoraConfig,
    *,
    dtype: str,
    quantization: str,
    device: torch.device,
    trust_remote_code: bool,
) -> Any:
    """The language model with an adapter, or alone, on a device and in evaluation mode, to score or embed with."""
    model = load_language_model(
        path, dtype=dtype, quantization=quantization, device=device, trust_remote_code=trust_remote_code
    )
    if adapter is not None:
        model = attach_adapter(model, lora, dropout=0.0, seed=0)
        set_adapter(model, read_adapter(adapter))
    return model.to(device).eval()


def adapter_parameters(model: Any) -> dict[str, nn.Parameter]:
    """The trainable LoRA parameters under the names they have in a PEFT file."""
    names = dict(model.named_parameters())
    return {_file_name(name): parameter for name, parameter in names.items() if "lora_" in name}


def _file_name(name: str) -> str:
    return name.replace(".default.", ".")


def read_adapter(path: str) -> dict[str, Tensor]:
    """The weights of an adapter folder, by PEFT's names. Raises ValueError naming a missing file."""
    file = Path(path) / WEIGHTS
    if not file.is_file():
        raise ValueError(f"{file} does not exist; an adapter is a PEFT folder with {WEIGHTS}")
    weights: dict[str, Tensor] = load_file(file)
    return weights


def set_adapter(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into the adapter. Raises ValueError unless names and shapes match one to one."""
    parameters = adapter_parameters(model)
    if parameters.keys() != weights.keys():
        wrong = sorted(parameters.keys() ^ weights.keys())
        raise ValueError(f"the adapter does not fit the model: {len(wrong)} weights differ, the first is {wrong[0]}")
    for name, parameter in parameters.items():  # copy_ would broadcast a smaller weight
        found, expected = list(weights[name].shape), list(parameter.shape)
        if found != expected:
            raise ValueError(f"the adapter does not fit the model: {name} has shape {found}, the model's is {expected}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def write_adapter(model: Any, path: Path) -> None:
    """Write the adapter as a PEFT folder that ``PeftModel.from_pretrained`` and vLLM load."""
    path.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.detach().to("cpu", torch.float32).contiguous()
        for name, value in get_peft_model_state_dict(model).items()
    }
    save_file(weights, path / WEIGHTS, metadata={"format": "pt"})
    model.peft_config["default"].save_pretrained(path)


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """The base model inside the block."""
    with model.disable_adapter():
        yield
