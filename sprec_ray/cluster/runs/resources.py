"""What a run reserves from Ray, and whether the cluster can ever give it: refused before anything waits for it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations

import ray

from sprec_ray.cluster.engines.hardware import SIMULATE_GPUS, gpus_are_simulated, nodes_without_cuda
from sprec_ray.config.run import ConfigError, RunConfig

logger = logging.getLogger(__name__)

_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Processes of one kind, and what Ray reserves for each."""

    name: str
    count: int
    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.count} {self.name}s with {self.gpus:g} GPUs and {self.cpus:g} CPUs each"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What a node of the cluster has."""

    cpus: float
    gpus: int


Places = dict[str, list[tuple[int, ...]]]
"""The GPUs of every process, by kind; GPUs are numbered through all nodes."""


def requests(config: RunConfig) -> tuple[Request, Request]:
    """What training workers and decoders reserve; pairs are scored by the workers, and have no decoders."""
    training, decoding = config.training, config.decoding
    return (
        Request(
            name="training worker",
            count=training.num_workers,
            cpus=training.cpus_per_worker,
            gpus=training.gpus_per_worker,
        ),
        Request(
            name="decoder",
            count=0 if config.data.task == "pairs" else decoding.num_decoders,
            cpus=decoding.cpus_per_decoder,
            gpus=decoding.reserved_gpus,
        ),
    )


def num_cpus(config: RunConfig) -> float:
    """CPUs that training and decoding reserve at the same time."""
    return _total(config, "cpus")


def check_resources(config: RunConfig) -> None:
    """Raise ConfigError for what the cluster that Ray is connected to can never give."""
    nodes = [
        Node(cpus=node["Resources"].get("CPU", 0.0), gpus=int(node["Resources"].get("GPU", 0)))
        for node in ray.nodes()
        if node["Alive"]
    ]
    check_fit(config, nodes)
    if not _total(config, "gpus"):
        return
    if gpus_are_simulated():
        if config.model.quantization == "nf4":
            raise ConfigError(f"model.quantization=nf4 computes on GPUs only: unset {SIMULATE_GPUS}, or set it to none")
        logger.warning("%s=1: GPUs are reserved from Ray, and everything is computed on the CPU", SIMULATE_GPUS)
    elif without := nodes_without_cuda():
        raise ConfigError(
            f"training and decoding ask for GPUs, and torch finds no CUDA device on {', '.join(without)}: install the "
            "driver and torch's CUDA build there, set training.gpus_per_worker=0 decoding.gpus_per_decoder=0, or, to "
            f"check the placement alone, set {SIMULATE_GPUS}=1"
        )


def check_fit(config: RunConfig, nodes: Sequence[Node]) -> None:
    """Raise ConfigError when the nodes, all free, cannot hold what the run reserves."""
    asked = requests(config)
    for request, key in zip(asked, ("training.gpus_per_worker", "decoding.gpus_per_decoder"), strict=True):
        if request.gpus > 1 and request.gpus != int(request.gpus):
            raise ConfigError(f"{key}={request.gpus:g}: Ray reserves a share of one GPU or whole GPUs; round it")
    have = {"CPU": sum(node.cpus for node in nodes), "GPU": sum(node.gpus for node in nodes)}
    for key, needed in (("CPU", _total(config, "cpus")), ("GPU", _total(config, "gpus"))):
        if needed > have[key] + _ROUNDING:
            raise ConfigError(
                f"training and decoding ask for {needed:g} {key}s, the cluster has {have[key]:g}; lower "
                f"training.num_workers, decoding.num_decoders or their {key.lower()}s_per_worker / _per_decoder"
            )
    for request in asked:
        if not any(pack([Request(name="", count=1, cpus=request.cpus, gpus=request.gpus)], [node]) for node in nodes):
            raise ConfigError(
                f"no node can hold a {request.name} with {request.gpus:g} GPUs and {request.cpus:g} CPUs; the largest "
                f"has {max(node.gpus for node in nodes)} GPUs and {max(node.cpus for node in nodes):g} CPUs: lower "
                "decoding.tensor_parallel_size or what a worker or decoder reserves"
            )
    together = [asked] if config.decoding.placement != "sequential" else [(request,) for request in asked]
    for group in together:
        if not any(pack(order, nodes) for order in permutations(group)):
            raise ConfigError(
                f"{' and '.join(map(str, group))} do not fit the nodes, although their sum does: a process takes its "
                "CPUs and GPUs from one node, and a share from one GPU; lower the shares or take whole GPUs"
            )
        _check_order(config, group, nodes)


def _check_order(config: RunConfig, group: tuple[Request, ...], nodes: Sequence[Node]) -> None:
    """Ray fills a GPU before it opens the next: what is started first can take another's place."""
    decoders_first = tuple(reversed(group))
    # The small Llama is pre-trained before there is a model to decode with; a run that finds it made starts decoders.
    orders = {decoders_first, group} if config.model.name_or_path == "scratch" else {decoders_first}
    for order in orders:
        places = pack(order, nodes)
        workers = places.get("training worker", []) if places else []
        if config.training.gpus_per_worker and (places is None or len(set(workers)) < len(workers)):
            raise ConfigError(
                f"{' and '.join(map(str, order))} do not share GPUs one by one: Ray fills a GPU before it opens the "
                "next, and two training workers on one GPU cannot talk (NCCL). Give each whole GPUs, or decoders a "
                "share above 0.5, workers the rest, and model.name_or_path a model"
            )


def pack(order: Iterable[Request], nodes: Sequence[Node]) -> Places | None:
    """Where Ray puts the processes on free nodes, kind by kind, or None when one finds no room.

    Each goes to the first node with room; a share goes to the GPU with the least room that suffices, as in Ray.
    """
    cpus = [node.cpus for node in nodes]
    first = [sum(node.gpus for node in nodes[:index]) for index in range(len(nodes))]
    free = [[1.0] * node.gpus for node in nodes]
    places: Places = {}
    for request in order:
        for _ in range(request.count):
            for index in range(len(nodes)):
                taken = _take(free[index], request.gpus)
                if taken is not None and cpus[index] + _ROUNDING >= request.cpus:
                    break
            else:
                return None
            cpus[index] -= request.cpus
            for gpu in taken:
                free[index][gpu] -= min(1.0, request.gpus)
            places.setdefault(request.name, []).append(tuple(first[index] + gpu for gpu in taken))
    return places


def _take(free: Sequence[float], share: float) -> tuple[int, ...] | None:
    """The GPUs of a node that a share or a whole number of them is taken from, or None."""
    if share == 0:
        return ()
    if share < 1:
        room = [gpu for gpu in range(len(free)) if free[gpu] + _ROUNDING >= share]
        return (min(room, key=lambda gpu: free[gpu]),) if room else None
    whole = [gpu for gpu in range(len(free)) if free[gpu] > 1 - _ROUNDING]
    return tuple(whole[: int(share)]) if len(whole) >= share else None


def _total(config: RunConfig, resource: str) -> float:
    amounts: list[float] = [request.count * getattr(request, resource) for request in requests(config)]
    return max(amounts) if config.decoding.placement == "sequential" else sum(amounts)
