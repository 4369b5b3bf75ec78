"""The items of a catalogue as vectors: what histories are read with and states are scored against.

Dimensions, here and in the networks: ``B`` histories, ``T`` places of a history, ``H`` hidden size, ``I`` items, ``X``
anything, ``N`` items scored per state. An item's id is its position in the catalogue plus 1; 0 is padding, on the left.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PADDING = 0
EMBEDDING_STD = 0.05


class ItemNetwork(Protocol):
    """Reads histories of ids, [B, T], into states, [B, H], that its ``items`` score."""

    items: Items

    def __call__(self, ids_BT: Tensor) -> Any:
        """The state after each history, [B, H]."""


class CausalNetwork(ItemNetwork, Protocol):
    """An ``ItemNetwork`` that has a state at every place of a history, of what is there and before."""

    def states(self, ids_BT: Tensor) -> Tensor:
        """The state of every place, [B, T, H]."""


class Items(nn.Module):
    """Item embeddings [1 + I + extra, H], tied: the same vectors are read and scored; padding is the zero vector.

    ``extra`` ids above the items (a mask) are read and never scored. With a ``temperature`` the score is the cosine
    over it (CORE, arXiv 2204.11067 eq. 10), else the inner product; ``bias`` adds a number per item.
    """

    def __init__(
        self, num_items: int, hidden_size: int, *, extra: int = 0, bias: bool = False, temperature: float | None = None
    ) -> None:
        super().__init__()
        self.num_items = num_items
        self.temperature = temperature
        self.embedding = nn.Embedding(1 + num_items + extra, hidden_size, padding_idx=PADDING)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        with torch.no_grad():
            self.embedding.weight[PADDING] = 0
        self.bias = nn.Parameter(torch.zeros(1 + num_items)) if bias else None

    def forward(self, ids_X: Tensor) -> Tensor:
        """The vectors of ids, [..., H]."""
        vectors: Tensor = self.embedding(ids_X)
        return vectors

    def logits(self, states_XH: Tensor) -> Tensor:
        """The scores of all items, [..., I]."""
        states_XH, weights = self._comparable(states_XH, self.embedding.weight[1 : 1 + self.num_items])
        scores_XI = states_XH @ weights.T
        return scores_XI if self.bias is None else scores_XI + self.bias[1:]

    def logits_of(self, states_XH: Tensor, ids_XN: Tensor) -> Tensor:
        """The scores of N items of its own for each state, [X, N]."""
        states_XH, vectors_XNH = self._comparable(states_XH, self(ids_XN))
        scores_XN = torch.einsum("xh,xnh->xn", states_XH, vectors_XNH)
        return scores_XN if self.bias is None else scores_XN + self.bias[ids_XN]

    def _comparable(self, states: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        if self.temperature is None:
            return states, vectors
        return F.normalize(states, dim=-1) / self.temperature, F.normalize(vectors, dim=-1)
