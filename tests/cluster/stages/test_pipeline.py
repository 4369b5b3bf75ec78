"""What the stages tell the engines of the model they work on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sprec_ray.cluster.engines import run_engines as engines
from sprec_ray.cluster.engines.tasks import EmbedTask
from sprec_ray.cluster.stages.pipeline import RayStages
from sprec_ray.config.load import load_config
from sprec_ray.data.catalog import Catalog
from sprec_ray.decoding.engines.decoder_model import DecoderModel
from sprec_ray.storage.artifacts import Stage
from sprec_ray.types import AdapterCheckpoint, Example

NF4 = ["model.quantization=nf4", "training.gpus_per_worker=1", "decoding.gpus_per_decoder=1"]
FREE = ["decoding.search=free", "evaluation.grounding=policy"]
POLICY = AdapterCheckpoint(path="somewhere/sft", version=1)


@pytest.mark.parametrize(("arguments", "expected"), [([], "none"), (NF4, "nf4")])
def test_all_engines_hold_the_weights_in_the_form_that_is_configured(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer, embedder and decoder: an adapter fits the base weights that it was trained on."""
    stages = RayStages(load_config([*arguments, *FREE, "evaluation.k=[1]"]), tmp_path)
    stages.__dict__.update(model_path="somewhere/model")
    stages.data.__dict__.update(
        catalog=Catalog(titles=("Dune", "Emma"), genres={}),
        train=[],
        measured=[Example(example_id="0", history=("Dune",), target="Emma")],
    )
    found = [stages._phase(Stage(tmp_path / "sft"), stages.config.sft, POLICY, None).quantization]

    def embed(task: EmbedTask, label: str) -> dict[str, Any]:
        found.append(task.policy.quantization)
        return {"compute_s": 0.0, "vectors": np.ones((1, 2), dtype=np.float32)}

    stages.measurement.evaluator.reads = embed
    stages.measurement.evaluator._policy_embedder("sft", POLICY)(["Dune"])

    def pool(decoding: Any, model: DecoderModel, **_: Any) -> Any:
        found.append(model.quantization)
        return SimpleNamespace(wait_ready=lambda: "fake", close=lambda: None)

    monkeypatch.setattr(engines, "DecoderPool", pool)
    monkeypatch.setattr(engines, "pack", lambda path, names=(): None)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda path, **options: None)
    stages.engines._start_decoders("somewhere/model")
    stages.close()
    assert found == [expected] * 3
