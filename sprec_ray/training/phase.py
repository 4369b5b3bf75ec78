"""What a training phase is told, free of any engine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sprec_ray.config.methods import PhaseConfig, PreferenceConfig
from sprec_ray.config.run import LoraConfig, TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What a training phase does, apart from its data.

    ``lora`` None trains all of the model (pre-training of the small Llama). ``preference`` None is SFT.
    """

    model_path: str
    dtype: str
    out: str
    seed: int
    training: TrainingConfig
    optimization: PhaseConfig | PreferenceConfig
    lora: LoraConfig | None = None
    init_adapter: str | None = None
    """Adapter to continue; None starts a fresh one."""
    reference_adapter: str | None = None
    """Adapter of the reference policy; None is the base model. Read only in preference training."""
    trust_remote_code: bool = False
    quantization: str = "none"
    """``nf4`` holds the base weights in 4 bits; needs ``lora``."""

    cache: str | None = None
    """Folder of reference log-probabilities, which phases and runs share; None scores them anew."""

    @property
    def preference(self) -> PreferenceConfig | None:
        """The preference settings, or None in SFT."""
        return self.optimization if isinstance(self.optimization, PreferenceConfig) else None


@dataclass(frozen=True, slots=True)
class Worker:
    """This process among the workers of a phase."""

    rank: int
    world_size: int
    device: torch.device
