"""GPUs as Ray counts them and as there are; one switch lets a machine without any check where a run would be placed."""

from __future__ import annotations

import os

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

SIMULATE_GPUS = "SPREC_RAY_SIMULATE_GPUS"
"""Set to 1: GPUs are reserved from Ray (``ray start --num-gpus=4``), and everything is computed on the CPU."""


def gpus_are_simulated() -> bool:
    """Whether GPUs are only counted. Raises ValueError for a value of the switch that is neither 0 nor 1."""
    value = os.environ.get(SIMULATE_GPUS, "0")
    if value not in {"0", "1"}:
        raise ValueError(f"{SIMULATE_GPUS}={value} must be 1 (GPUs are only counted) or 0")
    return value == "1"


def computes_on_gpu(share: float) -> bool:
    """Whether a process that reserves this share of GPUs computes on them."""
    return share > 0 and not gpus_are_simulated()


def environment() -> dict[str, str]:
    """What workers and actors must know of the driver's environment: Ray starts them elsewhere, with another one."""
    return {SIMULATE_GPUS: "1"} if gpus_are_simulated() else {}


def nodes_without_cuda() -> list[str]:
    """The addresses of the nodes whose GPUs torch cannot use: Ray believes what ``--num-gpus`` says."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    count = ray.remote(num_cpus=0, max_retries=0)(_num_cuda_devices)
    references = [
        count.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in nodes
    ]
    return [node["NodeManagerAddress"] for node, found in zip(nodes, ray.get(references), strict=True) if not found]


def _num_cuda_devices() -> int:
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides all GPUs from a task that reserves none
    import torch

    return torch.cuda.device_count()


def place() -> str:
    """Where this worker or actor is: its GPUs, as Ray numbers them, and its node."""
    context = ray.get_runtime_context()
    gpus = context.get_accelerator_ids().get("GPU", [])
    device = f"GPU {'+'.join(gpus)}" if gpus else "CPU"
    return f"{device} of {ray.util.get_node_ip_address()} ({context.get_node_id()[:8]})"
