"""Attention of a few queries of many rows over keys that are there already, for CPUs and capped scores."""

from __future__ import annotations

import torch
from torch import Tensor

from sprec_ray.decoding.arrays import Longs

_SCORES_AT_ONCE = 2**19
"""Attention scores that are held at once on a CPU."""


def attend_in_parts(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, extent_R: Longs, softcap: float | None
) -> Tensor:
    """Outputs [R, G, Q, D] of scaled queries, a few rows at a time so that the scores stay in the cores' caches.

    For so few queries of small heads this is faster on a CPU than torch's kernel.
    """
    output = torch.empty_like(query)
    size = max(1, _SCORES_AT_ONCE // (query.shape[1] * query.shape[2] * key.shape[2]))
    for first in range(0, len(query), size):
        rows = slice(first, first + size)
        slots = int(extent_R[rows].max())
        scores = query[rows] @ key[rows, :, :slots].transpose(2, 3)
        if softcap is not None:  # Gemma 2's, which torch's kernel does not know
            scores = softcap * torch.tanh(scores / softcap)
        weights = scores.add_(mask[rows, :, :, :slots]).softmax(-1, dtype=torch.float32).to(value.dtype)
        torch.matmul(weights, value[rows, :, :slots], out=output[rows])
    return output
