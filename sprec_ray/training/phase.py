"""What a training phase is told: its settings and its rows, free of any engine."""

from __future__ import annotations

from dataclasses import dataclass

from sprec_ray.config import LoraConfig, PhaseConfig, PreferenceConfig, TrainingConfig


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """Token ids of a prompt and its responses, the chosen one first. Without rejected responses it is an SFT row."""

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that a forward pass over separate rows sees."""
        return sum(len(self.prompt) + len(response) for response in self.responses)


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

    @property
    def preference(self) -> PreferenceConfig | None:
        """The preference settings, or None in SFT."""
        return self.optimization if isinstance(self.optimization, PreferenceConfig) else None
