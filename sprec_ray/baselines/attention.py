"""Networks of self-attention: SASRec, BERT4Rec and CORE. Dimensions: see ``items.py``; ``A`` heads."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprec_ray.baselines.items import EMBEDDING_STD, PADDING, Items
from sprec_ray.config_methods import CollaborativeConfig

CORE_TEMPERATURE = 0.07


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each with dropout, a residual and a layer norm.

    ``norm="before"`` is SASRec's (arXiv 1808.09781, section 3.3), ``"after"`` BERT's.
    """

    def __init__(
        self, settings: CollaborativeConfig, *, norm: Literal["before", "after"], inner_size: int, gelu: bool = False
    ) -> None:
        super().__init__()
        size = settings.hidden_size
        if size % settings.num_heads:
            raise ValueError(
                f"collaborative.hidden_size={size} is no multiple of collaborative.num_heads={settings.num_heads}"
            )
        self.num_heads, self.dropout, self.norm, self.gelu = settings.num_heads, settings.dropout, norm, gelu
        self.project = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.inner = nn.Linear(size, inner_size)
        self.outer = nn.Linear(inner_size, size)
        self.norms = nn.ModuleList([nn.LayerNorm(size) for _ in range(2)])

    def forward(self, states_BTH: Tensor, seen_BTT: Tensor) -> Tensor:
        """The next states; ``seen_BTT`` says which places (last dimension) a place reads, at least one each."""
        for norm, part in zip(self.norms, (lambda x: self._attend(x, seen_BTT), self._feed), strict=True):
            if self.norm == "before":
                states_BTH = states_BTH + self._drop(part(norm(states_BTH)))
            else:
                states_BTH = norm(states_BTH + self._drop(part(states_BTH)))
        return states_BTH

    def _attend(self, states_BTH: Tensor, seen_BTT: Tensor) -> Tensor:
        queries, keys, values = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.project(states_BTH).chunk(3, -1)
        )
        dropout = self.dropout if self.training else 0.0
        heads = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen_BTT[:, None], dropout_p=dropout)
        mixed: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return mixed

    def _feed(self, states_BTH: Tensor) -> Tensor:
        inner = self.inner(states_BTH)
        fed: Tensor = self.outer(self._drop(F.gelu(inner) if self.gelu else F.relu(inner)))
        return fed

    def _drop(self, states: Tensor) -> Tensor:
        return F.dropout(states, self.dropout, self.training)


class Positions(nn.Module):
    """A learned vector for each place, counted from the end of the history, so that padding moves none."""

    def __init__(self, num_places: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_places, hidden_size)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)

    def forward(self, num_places: int) -> Tensor:
        """The vectors of the last ``num_places`` places, [T, H]."""
        vectors: Tensor = self.embedding.weight[:num_places].flip(0)
        return vectors


def seen_places(ids_BT: Tensor, *, causal: bool) -> Tensor:
    """Which places each place reads, [B, T, T]: no padding, nothing later if ``causal``, and itself in any case.

    >>> seen_places(torch.tensor([[0, 7, 8]]), causal=True).int()[0]
    tensor([[1, 0, 0],
            [0, 1, 0],
            [0, 1, 1]], dtype=torch.int32)
    """
    num_places = ids_BT.shape[1]
    seen_BTT = (ids_BT != PADDING)[:, None, :].expand(-1, num_places, -1)
    if causal:
        seen_BTT = seen_BTT & torch.ones(num_places, num_places, dtype=torch.bool).tril()
    return seen_BTT | torch.eye(num_places, dtype=torch.bool)  # a softmax over nothing would be NaN


class SasRec(nn.Module):
    """SASRec (arXiv 1808.09781): causal self-attention; the state of a place scores what comes after it."""

    def __init__(self, settings: CollaborativeConfig, num_items: int, max_history: int) -> None:
        super().__init__()
        size = settings.hidden_size
        self.items = Items(num_items, size)
        self.positions = Positions(max_history, size)
        self.blocks = nn.ModuleList(
            [Block(settings, norm="before", inner_size=size) for _ in range(settings.num_layers)]
        )
        self.norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(settings.dropout)

    def states(self, ids_BT: Tensor) -> Tensor:
        """The state of every place, [B, T, H]."""
        states_BTH = self.dropout(self.items(ids_BT) + self.positions(ids_BT.shape[1]))
        seen_BTT = seen_places(ids_BT, causal=True)
        for block in self.blocks:
            states_BTH = block(states_BTH, seen_BTT)
        normed: Tensor = self.norm(states_BTH)
        return normed

    def forward(self, ids_BT: Tensor) -> Tensor:
        """The state after each history, [B, H]."""
        return self.states(ids_BT)[:, -1]
