"""STAMP (KDD 2018) and SHAN (IJCAI 2018): a history as weighted sums of its items. Dimensions: see ``items.py``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprec_ray.config.methods import CollaborativeConfig
from sprec_ray.recommenders.items import PADDING, Items

SHAN_RECENT = 2


class Stamp(nn.Module):
    """Attention of the last item and the mean over the history (doi 10.1145/3219819.3219950, eq. 3 to 10).

    The score of an item is the trilinear product of it, the attended history and the last item, so the state is the
    product of the latter two. The paper takes a sigmoid of it before the softmax, which bounds every score between 0
    and 1; there is none here, as in later implementations.
    """

    def __init__(self, settings: CollaborativeConfig, num_items: int, max_history: int) -> None:
        super().__init__()
        size = settings.hidden_size
        self.items = Items(num_items, size)
        self.dropout = nn.Dropout(settings.dropout)
        self.of_item = nn.Linear(size, size, bias=False)
        self.of_last = nn.Linear(size, size, bias=False)
        self.of_mean = nn.Linear(size, size)
        self.weight = nn.Linear(size, 1, bias=False)
        self.history = nn.Linear(size, size)
        self.last = nn.Linear(size, size)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """The state after each history, [B, H]."""
        known_BT1 = (ids_BT != PADDING)[:, :, None]
        items_BTH = self.dropout(self.items(ids_BT))
        last_BH = items_BTH[:, -1]
        mean_BH = items_BTH.sum(dim=1) / known_BT1.sum(dim=1).clamp(min=1)
        seen_BTH = self.of_item(items_BTH) + (self.of_last(last_BH) + self.of_mean(mean_BH))[:, None]
        weights_BT1 = self.weight(torch.sigmoid(seen_BTH)) * known_BT1
        attended_BH = (weights_BT1 * items_BTH).sum(dim=1)
        state_BH: Tensor = torch.tanh(self.history(attended_BH)) * torch.tanh(self.last(last_BH))
        return state_BH


class Shan(nn.Module):
    """Attention over older items, then over their sum and the last two (doi 10.24963/ijcai.2018/546, eq. 1 to 6).

    The paper asks with an embedding of the user; the users of test rows need not be those of training, so one learned
    vector asks for all.
    """

    def __init__(self, settings: CollaborativeConfig, num_items: int, max_history: int) -> None:
        super().__init__()
        size = settings.hidden_size
        self.items = Items(num_items, size)
        self.dropout = nn.Dropout(settings.dropout)
        self.older = nn.Linear(size, size)
        self.recent = nn.Linear(size, size)
        self.asked = nn.Parameter(torch.randn(size) / size**0.5)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """The state after each history, [B, H]."""
        known_BT = ids_BT != PADDING
        items_BTH = self.dropout(self.items(ids_BT))
        older = slice(None, -SHAN_RECENT)
        older_BH = self._attended(self.older, items_BTH[:, older], known_BT[:, older])
        has_older_B1 = known_BT[:, older].any(dim=1, keepdim=True)
        both = torch.cat([older_BH[:, None], items_BTH[:, -SHAN_RECENT:]], dim=1)
        return self._attended(self.recent, both, torch.cat([has_older_B1, known_BT[:, -SHAN_RECENT:]], dim=1))

    def _attended(self, layer: nn.Linear, vectors_BTH: Tensor, known_BT: Tensor) -> Tensor:
        """The sum of the vectors, weighted by a softmax over the known ones; of none, the zero vector."""
        scores_BT = F.relu(layer(vectors_BTH)) @ self.asked
        lowest = torch.finfo(scores_BT.dtype).min
        weights_BT = scores_BT.masked_fill(~known_BT, lowest).softmax(dim=1) * known_BT
        return (weights_BT[:, :, None] * vectors_BTH).sum(dim=1)
