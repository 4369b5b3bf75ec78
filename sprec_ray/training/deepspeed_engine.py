"""The DeepSpeed engine: the only module that imports deepspeed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from sprec_ray.config.run import TrainingConfig


def init_distributed(*, on_gpu: bool) -> None:
    """Tell DeepSpeed about the process group that Ray Train has made."""
    # Its shared-memory all-reduce for CPUs wants a C++ compiler at run time; an adapter's gradients are small.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", auto_mpi_discovery=False, verbose=False)


def make_engine(
    module: nn.Module, training: TrainingConfig, *, micro_batch_size: int, accumulation: int, device: torch.device
) -> Any:
    """A DeepSpeed engine over the module's trainable parameters, with AdamW and gradient clipping.

    Call ``engine(batch)``, ``engine.backward(loss)`` and ``engine.step()``; gradients are averaged over workers and
    over ``accumulation`` micro-batches. A bfloat16 model keeps its float32 adapter: gradients, communication and
    optimizer state of the adapter are float32, so no loss scaling or master copy is needed.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.0, weight_decay=training.weight_decay, fused=device.type == "cuda")
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": training.max_grad_norm,
        "zero_optimization": {"stage": training.zero_stage, "contiguous_gradients": False},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config, dist_init_required=False)
    return engine


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    """Set the rate of the next step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


@contextmanager
def whole_parameters(parameters: Sequence[nn.Parameter], *, write: bool = False) -> Iterator[None]:
    """Parameters gathered from all workers inside the block (ZeRO stage 3); ``write`` sends rank 0's changes back."""
    partitioned = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not partitioned:
        yield
        return
    with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0 if write else None):
        yield


@dataclass(frozen=True, slots=True)
class AdamState:
    """AdamW's state with whole tensors: ``moments`` holds ``exp_avg`` and ``exp_avg_sq`` by parameter name."""

    num_steps: float
    moments: dict[str, dict[str, Tensor]]


def adam_state(engine: Any, parameters: Mapping[str, nn.Parameter]) -> AdamState:
    """The optimizer's state on the CPU, gathered from all workers, who must all call this."""
    states = _torch_optimizer(engine).state
    moments: dict[str, dict[str, Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}}
    for moment, values in moments.items():
        for name, parameter in parameters.items():
            value = states[parameter][moment] if _is_whole(engine) else safe_get_full_optimizer_state(parameter, moment)
            values[name] = value.detach().to("cpu", copy=True).reshape(_shape(parameter))
    return AdamState(num_steps=float(next(iter(states.values()))["step"]), moments=moments)


def set_adam_state(
    engine: Any, parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor], adam: AdamState
) -> None:
    """Give an optimizer that has made a step this state, and its own copies of the parameters these values."""
    states = _torch_optimizer(engine).state
    for state in states.values():
        state["step"] = torch.full_like(torch.as_tensor(state["step"]), adam.num_steps)
    for name, parameter in parameters.items():
        if not _is_whole(engine):
            _set_divided(parameter, values[name], None)
        for moment, tensors in adam.moments.items():
            if _is_whole(engine):
                states[parameter][moment].copy_(tensors[name])
            else:
                _set_divided(parameter, tensors[name], moment)


def _set_divided(parameter: Any, value: Tensor, moment: str | None) -> None:
    """Give this worker its part of a moment, or of the optimizer's own copy of the parameter (None)."""
    value = value.to(parameter.device)
    if not hasattr(parameter, "ds_id"):  # stages 1 and 2
        if moment is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, moment)
        return
    # DeepSpeed's own call for whole tensors fails in stage 3 where they cannot be divided evenly: it does not pad.
    size = parameter.ds_tensor.numel()
    padded = torch.zeros(size * deepspeed.comm.get_world_size(), dtype=value.dtype, device=value.device)
    padded[: value.numel()] = value.flatten()
    part = padded[size * deepspeed.comm.get_rank() :][:size]
    if moment is None:
        safe_set_local_fp32_param(parameter, part)
    else:
        safe_set_local_optimizer_state(parameter, part, moment)


def _torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The AdamW inside the engine: ZeRO wraps it."""
    optimizer: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return optimizer


def _is_whole(engine: Any) -> bool:
    """Whether every worker holds the whole state: ZeRO stage 0."""
    return isinstance(engine.optimizer, torch.optim.Optimizer)


def _shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of a parameter that ZeRO stage 3 may have divided."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape
