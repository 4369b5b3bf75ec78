"""What jobs.plan_memory prints."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from sprec_ray.config.methods import PreferenceConfig
from sprec_ray.config.run import ConfigError, RunConfig
from sprec_ray.models.scratch import llama_config
from sprec_ray.training.memory import GIB, USABLE_GPU, plan_memory
from sprec_ray.training.packing import TokenGroup
from sprec_ray.training.phase import Phase


def plan_table(config: RunConfig, *, memory_gib: str, num_negatives: str) -> str:
    """A Markdown table of a worker's memory in SFT (N = 0) and in preference training at each number of negatives.

    All prompts and responses have the configured limits, and share nothing but the prompt of a group. The last column
    is a worker's share of the global batch. Raises ConfigError for arguments that are no numbers.
    """
    available = _numbers("gpu_memory_gib", memory_gib or "24", float)[0]
    counts = _numbers("num_negatives", num_negatives or str(config.selfplay.num_negatives), int)
    lines = [
        f"{config.model.name_or_path}, {config.model.dtype}, prompts of {config.model.max_prompt_tokens} and responses "
        f"of {config.model.max_response_tokens} tokens, {config.training.num_workers} workers, ZeRO "
        f"{config.training.zero_stage}, {available:g} GiB each",
        "",
        "| phase | N | weights GiB | optimizer GiB | one group GiB | largest micro-batch | of |",
        "|---|---|---|---|---|---|---|",
    ]
    model_config = _model_config(config)
    for count in [0, *counts]:
        optimization = config.preference if count else config.sft
        phase = Phase(
            model_path=config.model.name_or_path,
            dtype=config.model.dtype,
            out="",
            seed=0,
            training=config.training,
            optimization=optimization,
            lora=config.model.lora,
            trust_remote_code=config.model.trust_remote_code,
            quantization=config.model.quantization,
        )
        response = (1,) * config.model.max_response_tokens
        group = TokenGroup((1,) * config.model.max_prompt_tokens, (response,) * (1 + count))
        plan = plan_memory(phase, model_config, group, num_workers=config.training.num_workers, on_gpu=True)
        most = -(-optimization.global_batch_size // config.training.num_workers)
        try:
            largest = str(plan.largest_micro_batch(round(available * USABLE_GPU * GIB), most=most))
        except ValueError:
            largest = "none"
        gib = [f"{size / GIB:.2f}" for size in (plan.weights, plan.optimizer)] + [f"{plan.activations(1) / GIB:.3f}"]
        name = "preference" if isinstance(optimization, PreferenceConfig) else "SFT"
        lines.append("| " + " | ".join([name, str(count), *gib, largest, str(most)]) + " |")
    return "\n".join(lines)


def _numbers(name: str, text: str, kind: type[Any]) -> list[Any]:
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) <= 0:
        raise ConfigError(
            f"{name}={text} must be numbers above 0, such as {name}={'24' if kind is float else '1,5,10'}"
        )
    return numbers


def _model_config(config: RunConfig) -> Any:
    scratch = config.model.scratch
    if config.model.name_or_path == "scratch":
        positions = config.model.max_prompt_tokens + config.model.max_response_tokens
        return llama_config(scratch, vocab_size=scratch.vocab_size, max_positions=positions)
    try:
        return AutoConfig.from_pretrained(config.model.name_or_path, trust_remote_code=config.model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.name_or_path={config.model.name_or_path} could not be read ({str(error).split(chr(10), 1)[0]}); "
            "check the name, the network and your access"
        ) from None
