"""A tiny scratch Llama with two LoRA adapters, rows for it, and a second way to its log-probabilities."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from sprec_ray.config.data import ScratchConfig
from sprec_ray.config.run import LoraConfig
from sprec_ray.models.scratch import write_untrained_model
from sprec_ray.training.packing import TokenGroup

TITLES = (
    "Dune",
    "Emma",
    'A Child Called "It"',
    "Les Misérables",
    "1984",
    "Émile",
    "吾輩は猫である",
    "Salt Road (Salt, #1)",
)
SCRATCH = ScratchConfig(vocab_size=300, hidden_size=32, num_layers=2, num_heads=2)
LORA = LoraConfig(rank=4, alpha=8, dropout=0.0)
VOCABULARY = 290


@dataclass(frozen=True)
class TinyPolicy:
    """Folders: the model, and two adapters whose B is not 0."""

    path: str
    adapters: tuple[str, str]


def build_tiny_policy(folder: Path) -> TinyPolicy:
    path = folder / "model"
    write_untrained_model(path, TITLES * 20, SCRATCH, max_positions=64)
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():  # fresh weights give a nearly uniform policy, under which many mistakes look alike
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(4.0)
    model.save_pretrained(path)
    return TinyPolicy(str(path), (_write_adapter(path, folder / "A", 1), _write_adapter(path, folder / "B", 2)))


def _write_adapter(model_path: Path, out: Path, seed: int) -> str:
    torch.manual_seed(seed)
    config = PeftLoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules=list(LORA.target_modules))
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_path), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    model.save_pretrained(out)
    return str(out)


def make_groups(count: int, *, num_rejected: Sequence[int] = (0,), seed: int = 0) -> list[TokenGroup]:
    """Rows of random tokens with prompts and responses of many lengths; group i has ``num_rejected[i % len]``."""
    rng = random.Random(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, VOCABULARY) for _ in range(rng.randint(low, high)))

    return [
        TokenGroup(tokens(2, 9), tuple(tokens(1, 6) for _ in range(1 + num_rejected[row % len(num_rejected)])))
        for row in range(count)
    ]


def plain_policy(path: str, adapter: str | None, *, dtype: torch.dtype = torch.float32) -> Any:
    """The policy as transformers and PEFT load it, trainable, without anything of ours."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    return model if adapter is None else PeftModel.from_pretrained(model, adapter, is_trainable=True)


def plain_logp(model: Any, prompt: Sequence[int], response: Sequence[int]) -> torch.Tensor:
    """The response's log-probability from the model's own logits: one unpadded row, log_softmax, a sum."""
    ids = torch.tensor([[*prompt, *response]])
    logps_TV = torch.log_softmax(model(input_ids=ids).logits[0].float(), dim=-1)
    return sum(
        (logps_TV[len(prompt) - 1 + place, token] for place, token in enumerate(response)), start=torch.zeros(())
    )
