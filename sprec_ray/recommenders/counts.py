"""Recommenders that count: popularity, what followed the last title, and chance. Dimensions: see ``items.py``.

Their scores are logarithms of smoothed shares, so that a softmax over them is a probability.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sprec_ray.data.sequences import derive_rng
from sprec_ray.recommenders.items import PADDING

CHANCE = 1e-3
"""Chance adds less than this to equal logits: the ranking is random, the softmax is uniform within 0.1 %."""


def log_popularity(targets: Sequence[int], num_items: int) -> Tensor:
    """log((c_i + 1) / (n + I)), [I]: c_i of n training targets are item i; the 1 is for items that are never one."""
    counts_I = torch.bincount(torch.tensor(targets, dtype=torch.int64), minlength=1 + num_items)[1:].double()
    return ((counts_I + 1) / (counts_I.sum() + num_items)).log().float()


class Popularity(nn.Module):
    """The share of training targets that each item is, whatever the history."""

    log_popularity_I: Tensor

    def __init__(self, log_popularity_I: Tensor) -> None:
        super().__init__()
        self.register_buffer("log_popularity_I", log_popularity_I)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Log P(item), [B, I]."""
        return self.log_popularity_I.expand(len(ids_BT), -1)


class LastItem(nn.Module):
    """P(next = j | last = i) = (c_ij + P(j)) / (c_i + 1): how often j followed i in training, backed off to popularity.

    Training rows of a user overlap, so c counts one event of theirs as often as rows hold it. Popularity weighs as much
    as one such count; after an item that nothing followed, and after an empty history, it is
    all there is. The pairs (i, j) with c_ij > 0 are sorted by i; those of item i are ``starts[i] : starts[i + 1]``.
    """

    log_popularity_I: Tensor
    starts: Tensor
    followers: Tensor
    counts: Tensor

    def __init__(self, log_popularity_I: Tensor, starts: Tensor, followers: Tensor, counts: Tensor) -> None:
        super().__init__()
        self.register_buffer("log_popularity_I", log_popularity_I)
        self.register_buffer("starts", starts)
        self.register_buffer("followers", followers)
        self.register_buffer("counts", counts)

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], log_popularity_I: Tensor) -> LastItem:
        """The counts of all neighbours in sequences of ids, oldest first."""
        pairs = Counter(pair for sequence in sequences for pair in itertools.pairwise(sequence))
        ordered = sorted(pairs)
        first = torch.tensor([i for i, _ in ordered], dtype=torch.int64)
        return cls(
            log_popularity_I,
            starts=torch.searchsorted(first, torch.arange(len(log_popularity_I) + 2)),
            followers=torch.tensor([j for _, j in ordered], dtype=torch.int64),
            counts=torch.tensor([pairs[pair] for pair in ordered], dtype=torch.int64),
        )

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Log P(next item), [B, I]."""
        popularity_I = self.log_popularity_I.double().exp()
        scores_BI = self.log_popularity_I.repeat(len(ids_BT), 1)
        for row, last in enumerate(ids_BT[:, -1].tolist()):
            if last != PADDING:
                pairs = slice(int(self.starts[last]), int(self.starts[last + 1]))
                shares_I = popularity_I.clone()
                shares_I[self.followers[pairs] - 1] += self.counts[pairs]
                scores_BI[row] = (shares_I / (self.counts[pairs].sum() + 1)).log().float()
        return scores_BI


class Chance(nn.Module):
    """A random ranking for every history, the same for the same seed and history."""

    seed: Tensor

    def __init__(self, num_items: int, seed: int) -> None:
        super().__init__()
        self.num_items = num_items
        self.register_buffer("seed", torch.tensor(seed))

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Logits in [0, ``CHANCE``), [B, I]."""
        rows = [[item for item in ids if item != PADDING] for ids in ids_BT.tolist()]
        noise = [derive_rng(int(self.seed), f"chance/{ids}").random(self.num_items, dtype=np.float32) for ids in rows]
        return CHANCE * torch.from_numpy(np.stack(noise))
