"""The state of a training phase between two optimizer steps: what it needs to go on as if it had not been interrupted.

Tensors are whole, whatever the ZeRO stage divides, so another number of workers can continue from them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from sprec_ray.training.deepspeed_engine import AdamState, adam_state, set_adam_state, whole_parameters
from sprec_ray.training.packing import TokenGroup
from sprec_ray.training.phase import Phase, Worker

_SCALARS = "scalars"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """What a phase has done after ``len(history)`` optimizer steps; that number is also the position in the data."""

    history: list[dict[str, float]]
    """Metrics of every step; the learning rate of the next one follows from their number."""
    compute_s: float
    """Seconds of training so far, earlier sessions included."""
    parameters: dict[str, Tensor]
    adam: AdamState
    references: list[Tensor]
    """Reference log-probabilities of every group, [K] each."""
    random_states: list[Tensor]
    """Of every worker's generator, which dropout draws from."""


def capture(
    engine: Any,
    model: nn.Module,
    worker: Worker,
    *,
    history: list[dict[str, float]],
    compute_s: float,
    references: Sequence[Tensor],
) -> TrainingState:
    """The state of this moment, on the CPU; every worker takes part, because ZeRO divides what is gathered here."""
    trained = _trained(model)
    with whole_parameters(list(trained.values())):
        parameters = {name: parameter.detach().cpu().clone() for name, parameter in trained.items()}
    random_states: list[Any] = [_random_state(worker)]
    if worker.world_size > 1:
        mine, random_states = random_states[0], [None] * worker.world_size
        dist.all_gather_object(random_states, mine)
    return TrainingState(
        history=history,
        compute_s=compute_s,
        parameters=parameters,
        adam=adam_state(engine, trained),
        references=list(references),
        random_states=random_states,
    )


def restore(engine: Any, model: nn.Module, worker: Worker, state: TrainingState, *, seed: int) -> None:
    """Put the state into a fresh engine that has made one step, which gives AdamW the tensors to be overwritten.

    With another number of workers than before the generators start anew: only dropout draws from them.
    """
    trained = _trained(model)
    with torch.no_grad(), whole_parameters(list(trained.values()), write=True):
        for name, parameter in trained.items():
            parameter.copy_(state.parameters[name].to(parameter.device))
    set_adam_state(engine, trained, state.parameters, state.adam)
    if len(state.random_states) == worker.world_size:
        _set_random_state(worker, state.random_states[worker.rank])
    else:
        torch.manual_seed(seed + worker.rank + len(state.history))


def to_bytes(state: TrainingState, key: str) -> bytes:
    """The state as one safetensors file, under the ``state_key`` of its phase."""
    tensors = {f"parameter/{name}": tensor.contiguous() for name, tensor in state.parameters.items()}
    for moment, values in state.adam.moments.items():
        tensors |= {f"{moment}/{name}": tensor.contiguous() for name, tensor in values.items()}
    tensors |= {f"random/{rank}": tensor for rank, tensor in enumerate(state.random_states)}
    tensors["references"] = torch.cat(state.references)
    scalars = {
        "key": key,
        "history": state.history,
        "compute_s": state.compute_s,
        "adam_steps": state.adam.num_steps,
        "num_responses": [len(reference_K) for reference_K in state.references],
    }
    content: bytes = save(tensors, metadata={_SCALARS: json.dumps(scalars)})
    return content


def from_bytes(content: bytes, key: str) -> TrainingState | None:
    """The state that ``to_bytes`` wrote, or None when it is of another phase. Raises ValueError when it is damaged."""
    try:
        tensors = load(content)
        scalars = json.loads(_metadata(content)[_SCALARS])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"the saved state of a training phase is damaged ({error})") from None
    if scalars["key"] != key:
        return None
    ranks = sorted(int(name.removeprefix("random/")) for name in tensors if name.startswith("random/"))
    return TrainingState(
        history=scalars["history"],
        compute_s=scalars["compute_s"],
        parameters=_below(tensors, "parameter/"),
        adam=AdamState(
            num_steps=scalars["adam_steps"],
            moments={moment: _below(tensors, f"{moment}/") for moment in ("exp_avg", "exp_avg_sq")},
        ),
        references=list(torch.split(tensors["references"], scalars["num_responses"])),
        random_states=[tensors[f"random/{rank}"] for rank in ranks],
    )


def state_key(phase: Phase, groups: Sequence[TokenGroup]) -> str:
    """A name for what a phase computes, not how: its seed, optimization, adapter settings, precision and groups.

    The base model, and the adapters that the phase starts from and is measured against, are not in it.
    """
    optimization = dataclasses.asdict(phase.optimization) | {"micro_batch_size": None}
    lora = None if phase.lora is None else dataclasses.asdict(phase.lora)
    settings = [phase.seed, optimization, lora, phase.dtype, phase.quantization]
    settings += [phase.training.max_grad_norm, phase.training.weight_decay]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for group in groups:
        for tokens in (*group.prompts, *group.responses):
            digest.update(array("q", [len(tokens), *tokens]).tobytes())
        digest.update(f"{group.weight} {group.smoothing}".encode())
    return digest.hexdigest()


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _metadata(content: bytes) -> dict[str, str]:
    """The text part of a safetensors file: 8 bytes of length, then JSON (huggingface.co/docs/safetensors)."""
    length = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    return metadata


def _random_state(worker: Worker) -> Tensor:
    return torch.cuda.get_rng_state(worker.device) if worker.device.type == "cuda" else torch.get_rng_state()


def _set_random_state(worker: Worker, state: Tensor) -> None:
    if worker.device.type == "cuda":
        torch.cuda.set_rng_state(state, worker.device)
    else:
        torch.set_rng_state(state)
