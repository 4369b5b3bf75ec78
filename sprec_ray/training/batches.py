"""Which rows each worker sees at each step: a plan every worker computes alike, so that none has to be told."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sprec_ray.config.methods import PhaseConfig, PreferenceConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: the rows of all workers, and this worker's micro-batches.

    A row index of None pads a micro-batch count that other workers need; it is computed with weight 0.
    """

    rows: tuple[int, ...]
    micro_batches: tuple[tuple[int | None, ...], ...]


def accumulation(global_batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Micro-batches per worker and step."""
    per_worker = -(-global_batch_size // world_size)
    return -(-per_worker // min(micro_batch_size, per_worker))


def plan_steps(
    lengths: Sequence[int],
    *,
    num_epochs: int,
    global_batch_size: int,
    micro_batch_size: int,
    seed: int,
    worker: tuple[int, int],
) -> list[Step]:
    """The steps of a phase for ``worker = (rank, world size)``.

    Each epoch shuffles the rows with its own seed and cuts them into global batches, the last of which may be short.
    Inside a global batch rows are sorted by length and dealt to the workers, so that all have equal work and little
    padding; the loss is normalised over the global batch, so how it is dealt changes nothing but summation order.
    """
    rank, world_size = worker
    num_micro = accumulation(global_batch_size, micro_batch_size, world_size)
    steps = []
    for epoch in range(num_epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
        for start in range(0, len(order), global_batch_size):
            rows = sorted((int(row) for row in order[start : start + global_batch_size]), key=lambda row: lengths[row])
            mine: list[int | None] = list(rows[rank::world_size])
            size = -(-max(len(mine), 1) // num_micro)
            micro = [tuple(mine[first : first + size]) for first in range(0, len(mine), size)]
            micro += [(None,)] * (num_micro - len(micro))
            steps.append(Step(rows=tuple(rows), micro_batches=tuple(micro)))
    return steps


def learning_rate(step: int, num_steps: int, *, peak: float, num_warmup_steps: int) -> float:
    """Linear warm-up to ``peak``, then linear decay towards 0. A phase shorter than its warm-up ends below the peak.

    >>> [round(learning_rate(step, 100, peak=1.0, num_warmup_steps=2), 2) for step in (0, 1, 2, 51, 99)]
    [0.5, 1.0, 1.0, 0.5, 0.01]
    """
    if step < num_warmup_steps:
        return peak * (step + 1) / num_warmup_steps
    return peak * (num_steps - step) / (num_steps - num_warmup_steps)


def warn_of_short_phase(settings: PhaseConfig | PreferenceConfig, num_rows: int, name: str) -> None:
    """Log a warning when a phase ends before its learning rate has reached the peak."""
    num_steps = settings.num_epochs * -(-num_rows // settings.global_batch_size)
    if num_steps <= settings.num_warmup_steps:
        logger.warning(
            "%s: all %d steps are warm-up (num_warmup_steps=%d), so the learning rate stays below its peak",
            name,
            num_steps,
            settings.num_warmup_steps,
        )
