"""What the driver asks of the training workers."""

from __future__ import annotations

from dataclasses import dataclass

from sprec_ray.cluster.engines.parcel import Parcel
from sprec_ray.config.run import LoraConfig, ModelConfig
from sprec_ray.data.tokens import TextSettings
from sprec_ray.training.phase import Phase
from sprec_ray.types import AdapterCheckpoint, JudgementGroup, PreferenceGroup

TrainRow = PreferenceGroup | JudgementGroup
"""What a phase trains on; all rows of a phase are of one kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTask:
    """A training phase and the file of rows it trains on; paths are those of the driver's machine."""

    phase: Phase
    rows_path: str
    text: TextSettings
    judgements: bool = False
    """The rows are JudgementGroups, not PreferenceGroups."""
    whole_text: bool = False
    """Every token but the first is a target: language-model pre-training."""
    parcels: tuple[Parcel, ...] = ()
    """The files at these paths for workers on other machines; what has no parcel lies on all of them."""
    kept_state: bytes | None = None
    """The state to go on from that the driver found in the stage's folder, of an earlier process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPolicy:
    """A policy that is only read: a language model, with an adapter or without."""

    model_path: str
    dtype: str
    trust_remote_code: bool
    adapter: str | None
    lora: LoraConfig
    quantization: str = "none"

    @classmethod
    def of(cls, model: ModelConfig, model_path: str, adapter: AdapterCheckpoint | None) -> ReadPolicy:
        """The policy of an adapter on a run's language model."""
        return cls(
            model_path=model_path,
            dtype=model.dtype,
            trust_remote_code=model.trust_remote_code,
            adapter=adapter.path if adapter else None,
            lora=model.lora,
            quantization=model.quantization,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedTask:
    """Embed texts with the policy's last hidden states; the summary holds the ``vectors``, one row a text."""

    policy: ReadPolicy
    texts: tuple[str, ...]
    parcels: tuple[Parcel, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTask:
    """Score given answers under a policy; the summary holds ``logps``, per group and answer its tokens' in nats."""

    policy: ReadPolicy
    groups: tuple[JudgementGroup, ...] | tuple[PreferenceGroup, ...]
    text: TextSettings
    parcels: tuple[Parcel, ...] = ()


ReadTask = EmbedTask | ScoreTask
"""What changes no policy."""
