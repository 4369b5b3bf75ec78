from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sprec_ray.cluster.stages.language_model import pretrained_model
from sprec_ray.config.load import load_config
from sprec_ray.data.catalog import Catalog
from sprec_ray.data.tokens import TextSettings
from sprec_ray.storage.mirror import Mirror
from sprec_ray.training.phase import Phase
from sprec_ray.types import Example

TEXT = TextSettings(template="short", noun="book", max_prompt_tokens=64, max_response_tokens=16)


def test_the_small_llama_is_pre_trained_unquantized_whatever_is_asked_of_the_policy(tmp_path: Path) -> None:
    config = load_config(
        [
            "model.quantization=nf4",
            "training.gpus_per_worker=1",
            "decoding.gpus_per_decoder=1",
            "model.scratch.vocab_size=300",
            "model.scratch.hidden_size=32",
            "model.scratch.num_heads=2",
            "model.scratch.num_layers=1",
        ]
    )
    phases: list[Phase] = []

    def train(stage: Any, phase: Phase, rows: Any, name: str, **options: Any) -> dict[str, Any]:
        phases.append(phase)
        return {}

    engines: Any = SimpleNamespace(text=TEXT, train=train)
    catalog = Catalog(titles=("Dune", "Emma"), genres={})
    example = Example(example_id="0", history=("Dune",), target="Emma")
    pretrained_model(config, Mirror(tmp_path, None), engines, train=[example], catalog=catalog)
    assert [(phase.lora, phase.quantization) for phase in phases] == [(None, "none")]
