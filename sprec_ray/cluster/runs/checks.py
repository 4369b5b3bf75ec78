"""Checks of what a configuration names on this machine, before anything expensive starts."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from sprec_ray.config.run import ConfigError, RunConfig
from sprec_ray.decoding.engines.make import resolve_engine


def check_paths(config: RunConfig) -> None:
    """Raise ConfigError for data, a model or a package that is not there."""
    data, model = config.data, config.model.name_or_path
    if data.path is not None and data.source != "huggingface" and not Path(data.path).expanduser().exists():
        raise ConfigError(f"data.path={data.path} does not exist; give the folder of the raw files")
    evaluation = config.evaluation
    if evaluation.grounding == "sentence" and importlib.util.find_spec("sentence_transformers") is None:
        raise ConfigError(
            "evaluation.grounding=sentence needs sentence-transformers: pip install 'sprec-ray[sentence]', or set "
            "evaluation.grounding=policy"
        )
    if resolve_engine(config.decoding) == "transformers" and config.decoding.tensor_parallel_size > 1:
        raise ConfigError(
            f"decoding.tensor_parallel_size={config.decoding.tensor_parallel_size} needs vLLM, which is not installed; "
            "install it, or set decoding.tensor_parallel_size=1"
        )
    if config.decoding.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ConfigError("decoding.engine=vllm needs vLLM, which is not installed; use decoding.engine=transformers")
    if model != "scratch":
        _check_model(config)


def _check_model(config: RunConfig) -> None:
    model = config.model.name_or_path
    if Path(model).expanduser().is_dir():
        try:
            described = json.loads((Path(model).expanduser() / "config.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(
                f"model.name_or_path={model} has no config.json; give the folder of a transformers model"
            ) from None
        except ValueError as error:
            raise ConfigError(
                f"model.name_or_path={model}: its config.json is damaged ({error}); download the model again"
            ) from None
        _check_context(config, described)
        return
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise ConfigError(f"model.name_or_path={model} does not exist; give a model folder, a hub name or 'scratch'")
    from transformers import AutoConfig

    try:
        described = AutoConfig.from_pretrained(model, trust_remote_code=config.model.trust_remote_code).to_dict()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.name_or_path={model} is no folder here and could not be loaded from the hub "
            f"({str(error).split(chr(10), 1)[0]}); check the name, the network and your access, or use 'scratch'"
        ) from None
    _check_context(config, described)


def _check_context(config: RunConfig, described: dict[str, Any]) -> None:
    context = {**described, **(described.get("text_config") or {})}.get("max_position_embeddings")
    prompt, response = config.model.max_prompt_tokens, config.model.max_response_tokens
    if context is not None and prompt + response > context:
        raise ConfigError(
            f"model.max_prompt_tokens={prompt} and model.max_response_tokens={response} exceed the context of "
            f"{config.model.name_or_path}, {context} tokens; lower them"
        )
