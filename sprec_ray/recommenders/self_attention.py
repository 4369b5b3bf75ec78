"""Networks of self-attention: SASRec, BERT4Rec and CORE. Dimensions: see ``items.py``; ``A`` heads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprec_ray.config.methods import CollaborativeConfig
from sprec_ray.recommenders.items import EMBEDDING_STD, PADDING, Items

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
        self.num_heads, self.dropout, self.norm, self.gelu = settings.num_heads, settings.dropout, norm, gelu
        self.project = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.inner = nn.Linear(size, inner_size)
        self.outer = nn.Linear(inner_size, size)
        self.norms = nn.ModuleList([nn.LayerNorm(size) for _ in range(2)])
        for layer in (self.project, self.out, self.inner, self.outer):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)  # a bias as large as PyTorch's drowns small embeddings where norms come last

    def forward(self, states_BTH: Tensor, seen_BTT: Tensor) -> Tensor:
        """The next states; ``seen_BTT`` says which places (last dimension) a place reads, at least one each."""
        parts: list[Callable[[Tensor], Tensor]] = [partial(self._attend, seen_BTT=seen_BTT), self._feed]
        for norm, part in zip(self.norms, parts, strict=True):
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


class Bert4Rec(nn.Module):
    """BERT4Rec (arXiv 1904.06690): attention in both directions; the state of a masked place scores what was there.

    The next item is asked for by a mask after the history.
    """

    def __init__(self, settings: CollaborativeConfig, num_items: int, max_history: int) -> None:
        super().__init__()
        size = settings.hidden_size
        self.items = Items(num_items, size, extra=1, bias=True)
        self.mask = num_items + 1
        self.positions = Positions(max_history + 1, size)
        self.blocks = nn.ModuleList(
            [Block(settings, norm="after", inner_size=4 * size, gelu=True) for _ in range(settings.num_layers)]
        )
        self.dropout = nn.Dropout(settings.dropout)
        self.out = nn.Linear(size, size)

    def states(self, ids_BT: Tensor) -> Tensor:
        """The state of every place of ids with masks, [B, T, H] (eq. 7, without the item embeddings)."""
        states_BTH = self.dropout(self.items(ids_BT) + self.positions(ids_BT.shape[1]))
        seen_BTT = seen_places(ids_BT, causal=False)
        for block in self.blocks:
            states_BTH = block(states_BTH, seen_BTT)
        return F.gelu(self.out(states_BTH))

    def forward(self, ids_BT: Tensor) -> Tensor:
        """The state of a mask after each history, [B, H]."""
        masks_B1 = torch.full((len(ids_BT), 1), self.mask)
        return self.states(torch.cat([ids_BT, masks_B1], dim=1))[:, -1]


class Core(nn.Module):
    """CORE-trm (arXiv 2204.11067, eq. 3 to 10): a weighted mean of the history's own item embeddings.

    Attention only finds the weights, so states and items are in one space; they are compared by their cosine.
    """

    def __init__(self, settings: CollaborativeConfig, num_items: int, max_history: int) -> None:
        super().__init__()
        size = settings.hidden_size
        self.items = Items(num_items, size, temperature=CORE_TEMPERATURE)
        self.positions = Positions(max_history, size)
        self.blocks = nn.ModuleList(
            [Block(settings, norm="after", inner_size=4 * size, gelu=True) for _ in range(settings.num_layers)]
        )
        self.norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(settings.dropout)
        self.weight = nn.Linear(size, 1, bias=False)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """The state after each history, [B, H]."""
        items_BTH = self.dropout(self.items(ids_BT))
        states_BTH = self.dropout(self.norm(items_BTH + self.positions(ids_BT.shape[1])))
        seen_BTT = seen_places(ids_BT, causal=True)
        for block in self.blocks:
            states_BTH = block(states_BTH, seen_BTT)
        scores_BT = self.weight(states_BTH)[:, :, 0]
        lowest = torch.finfo(scores_BT.dtype).min
        weights_BT = scores_BT.masked_fill(ids_BT == PADDING, lowest).softmax(dim=1)
        state_BH: Tensor = (weights_BT[:, :, None] * items_BTH).sum(dim=1)
        return state_BH
