"""Processes that run training phases, apart from the tests' own: a process group and DeepSpeed stay in them.

pytest's process also hosts vLLM engines, which have process groups of their own and patch torch.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from sprec_ray.training.packing import TokenGroup
from sprec_ray.training.phase import Phase


class FitProcesses:
    """One process per rank, spawned once, that form a gloo group."""

    def __init__(self, world_size: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._ranks = [
            ProcessPoolExecutor(
                1, multiprocessing.get_context("spawn"), initializer=_start, initargs=(rank, world_size, port)
            )
            for rank in range(world_size)
        ]

    def run(self, phase: Phase, groups: Sequence[TokenGroup]) -> dict[str, Any]:
        """The summary of a phase, that of rank 0."""
        return self.call(_run_phase, phase, groups)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a module-level function returns on rank 0; all ranks call it."""
        futures = [rank.submit(function, *arguments) for rank in self._ranks]
        first, *_ = [future.result(timeout=300) for future in futures]
        return first

    def close(self) -> None:
        """End the processes."""
        for rank in self._ranks:
            rank.shutdown(wait=False)
        for rank in self._ranks:
            rank.shutdown(wait=True)


def _start(rank: int, world_size: int, port: int) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "DS_ACCELERATOR": "cpu",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import torch

    from sprec_ray.training.deepspeed_engine import init_distributed

    torch.set_num_threads(1)
    init_distributed(on_gpu=False)


def run_from_state(phase: Phase, groups: Sequence[TokenGroup], saved: bytes | None) -> dict[str, Any]:
    """The summary of a phase that goes on from a state; ``saves`` are the states that it gave away."""
    saves: list[bytes] = []
    summary = _run_phase(phase, groups, saved=saved, save=saves.append)
    return {**summary, "saves": saves}


def _run_phase(phase: Phase, groups: Sequence[TokenGroup], **options: Any) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    from sprec_ray.training.fit import run_phase
    from sprec_ray.training.phase import Worker

    worker = Worker(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    progress: list[tuple[int, int, float]] = []
    summary = run_phase(phase, groups, worker, lambda *values: progress.append(values), **options)
    return {**summary, "progress": progress}


def run_with_shifted_reference(phase: Phase, groups: Sequence[TokenGroup], shift: float) -> dict[str, Any]:
    """Run a phase whose reference log-probabilities of the chosen responses are wrong by ``shift`` nats."""
    from sprec_ray.training.trainer import Trainer

    score = Trainer._score_references

    def wrong(*arguments: Any) -> Any:
        references = score(*arguments)
        for reference_K in references:
            reference_K[0] += shift
        return references

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_score_references", wrong)
        return _run_phase(phase, groups)


def run_with_max_logits(phase: Phase, groups: Sequence[TokenGroup], max_logits: int) -> dict[str, Any]:
    """Run a phase that holds at most so many logits at once."""
    from sprec_ray.training import scoring

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "MAX_LOGITS", max_logits)
        return _run_phase(phase, groups)
