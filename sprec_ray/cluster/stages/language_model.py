"""The language model of a run: a given one, or the small Llama pre-trained on the run's data and cached across runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from sprec_ray import __version__
from sprec_ray.cluster.engines.run_engines import Engines
from sprec_ray.cluster.engines.tasks import TrainRow
from sprec_ray.config.load import config_to_dict
from sprec_ray.config.methods import PhaseConfig
from sprec_ray.config.run import RunConfig
from sprec_ray.data.catalog import Catalog
from sprec_ray.data.prompts import render_prompt, render_response
from sprec_ray.selfplay.sft_groups import sft_groups
from sprec_ray.storage.artifacts import Stage, locked
from sprec_ray.storage.mirror import Mirror
from sprec_ray.training.phase import Phase
from sprec_ray.types import Example


def given_model(config: RunConfig) -> str | None:
    """The folder or hub name of the language model that was given; None where the small Llama stands in."""
    if config.model.name_or_path == "scratch":
        return None
    given = Path(config.model.name_or_path).expanduser()
    return str(given.resolve()) if given.is_dir() else config.model.name_or_path


def pretrained_model(
    config: RunConfig, mirror: Mirror, engines: Engines, *, train: Sequence[Example], catalog: Catalog
) -> str:
    """The folder of the small Llama, pre-trained on the whole text of the training examples unless it is cached.

    What it depends on names its folder, so runs share it exactly when they may: the data, ``model.scratch``, the text
    settings, clipping, weight decay and the package's version. The run's seed only orders the examples, and the order
    is undone here.
    """
    examples = sorted(train, key=lambda example: example.example_id)
    text = engines.text
    prompts = (
        render_prompt(example.history, template=text.template, noun=text.noun, candidates=example.candidates)
        + render_response(example.target)
        for example in examples
    )
    return cached_model(
        config,
        mirror,
        engines,
        rows=sft_groups(examples),
        texts=chain(map(render_response, catalog.titles), prompts),
        content=[catalog.titles, [_content(example) for example in examples]],
    )


def cached_model(
    config: RunConfig,
    mirror: Mirror,
    engines: Engines,
    *,
    rows: Sequence[TrainRow],
    texts: Iterable[str],
    content: Any,
) -> str:
    """The folder of the small Llama, pre-trained on the whole text of the rows, unless it is cached.

    Its tokenizer is learned on ``texts``; ``content`` is what it is known by beside the settings.
    """
    key = hashlib.sha256(json.dumps(content).encode())
    plain = config_to_dict(config)
    optimizer = [plain["training"][name] for name in ("max_grad_norm", "weight_decay")]
    settings = [plain["model"]["scratch"], dataclasses.asdict(engines.text), optimizer, __version__]
    key.update(json.dumps(settings, sort_keys=True).encode())
    cache = mirror.folder / "cache"
    stage = Stage(cache / f"model-{key.hexdigest()[:16]}")
    with locked(cache / f".{stage.path.name}.lock"):  # two runs that need the same model do not train it twice
        if not stage.is_finished:
            mirror.pull(f"cache/{stage.path.name}")
        if not stage.is_finished:
            stage.start()
            stage.finish(_pretrain(config, stage, engines, rows=rows, texts=texts))
        mirror.push(stage.path)
    return str(stage.path)


def _content(example: Example) -> tuple[Any, ...]:
    content = example.example_id, example.history, example.target
    return (*content, example.candidates) if example.candidates else content


def _pretrain(
    config: RunConfig, stage: Stage, engines: Engines, *, rows: Sequence[TrainRow], texts: Iterable[str]
) -> dict[str, Any]:
    from sprec_ray.models.scratch import write_untrained_model

    scratch, text = config.model.scratch, engines.text
    untrained = stage.path / "untrained"
    write_untrained_model(untrained, texts, scratch, max_positions=text.max_prompt_tokens + text.max_response_tokens)
    num_steps = scratch.num_epochs * -(-len(rows) // scratch.global_batch_size)
    phase = Phase(
        model_path=str(untrained),
        dtype="float32",
        out=str(stage.path),
        seed=scratch.seed,
        training=config.training,
        optimization=PhaseConfig(
            learning_rate=scratch.learning_rate,
            num_epochs=scratch.num_epochs,
            global_batch_size=scratch.global_batch_size,
            micro_batch_size=scratch.micro_batch_size,
            num_warmup_steps=num_steps // 10,
        ),
    )
    return engines.train(stage, phase, rows, "pre-training", whole_text=True)
