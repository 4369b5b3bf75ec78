"""How many runs a cluster can hold at the same time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import ray

from sprec_ray.cluster.runs.resources import Node, Request, pack, requests
from sprec_ray.config.run import RunConfig


def num_trials_at_a_time(configs: Sequence[RunConfig], asked: int | str) -> int:
    """How many runs the cluster that Ray is connected to may do at once, whichever of these they are; at least 1.

    At most ``asked``; with ``auto`` no more than have CPU cores of their own.
    """
    nodes = [
        Node(cpus=node["Resources"].get("CPU", 0.0), gpus=int(node["Resources"].get("GPU", 0)))
        for node in ray.nodes()
        if node["Alive"]
    ]
    distinct = {(config.training, config.decoding): config for config in configs}.values()
    fitting = max(1, min(num_whole_runs(config, nodes) for config in distinct))
    return min(fitting, min(map(_without_sharing_cores, distinct)) if asked == "auto" else int(asked))


def num_whole_runs(config: RunConfig, nodes: Sequence[Node]) -> int:
    """How many runs the nodes hold with all that each ever reserves.

    Then no trial waits for another's engines, whatever it holds itself. Where the sides take turns (``sequential``)
    trials may be on different sides: a trial counts with the larger of both in each.
    """
    workers, decoders = requests(config)
    sides: tuple[Request, ...] = (workers, decoders)
    if config.decoding.placement == "sequential":
        most = max(sides, key=lambda side: (side.count * side.gpus, side.count * side.cpus))
        sides = (replace(most, cpus=max(side.count * side.cpus for side in sides) / most.count),)
    number = 0
    while number < 1000 and pack(sides * (number + 1), nodes) is not None:
        number += 1
    return number


def _without_sharing_cores(config: RunConfig) -> int:
    """As many runs as have cores of their own: workers that are told no number of threads compute on all cores."""
    training, decoding = config.training, config.decoding
    if training.gpus_per_worker:
        return 1000
    cores = len(os.sched_getaffinity(0))
    threads = training.num_workers * training.num_threads or cores
    if not decoding.gpus_per_decoder and decoding.placement != "sequential" and training.num_threads:
        threads += round(decoding.num_decoders * decoding.cpus_per_decoder)
    return max(1, cores // threads)
