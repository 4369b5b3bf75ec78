"""What the training phases of a run are told."""

from __future__ import annotations

from pathlib import Path

from sprec_ray.config.methods import PhaseConfig, PreferenceConfig
from sprec_ray.config.run import RunConfig
from sprec_ray.data.sequences import derive_rng
from sprec_ray.storage.artifacts import Stage
from sprec_ray.training.phase import Phase
from sprec_ray.types import AdapterCheckpoint


def make_phase(
    config: RunConfig,
    folder: Path,
    stage: Stage,
    optimization: PhaseConfig | PreferenceConfig,
    *,
    model_path: str,
    adapters: tuple[AdapterCheckpoint | None, AdapterCheckpoint | None] = (None, None),
) -> Phase:
    """A phase of the run in ``folder``, which continues the first of the adapters, with the second as its reference.

    Its seed derives from the run's and the stage's place.
    """
    init, reference = adapters
    return Phase(
        model_path=model_path,
        dtype=config.model.dtype,
        out=str(stage.path),
        seed=int(derive_rng(config.seed, str(stage.path.relative_to(folder))).integers(2**31)),
        training=config.training,
        optimization=optimization,
        lora=config.model.lora,
        init_adapter=init.path if init else None,
        reference_adapter=reference.path if reference else None,
        trust_remote_code=config.model.trust_remote_code,
        quantization=config.model.quantization,
        cache=str(folder.parent / "cache" / "references"),
    )
