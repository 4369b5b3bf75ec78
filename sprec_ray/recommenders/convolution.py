"""Caser (arXiv 1809.07426): convolutions over the last items. Dimensions: see ``items.py``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprec_ray.config.methods import CollaborativeConfig
from sprec_ray.recommenders.items import PADDING, Items

CASER_WINDOW = 5
CASER_HORIZONTAL = 16
CASER_VERTICAL = 4


class Caser(nn.Module):
    """The last five items as an image [5, H]: horizontal filters of every height, pooled, and vertical filters.

    The paper also has an embedding of the user; the users of test rows need not be those of training, so there is none
    here. The item embeddings are also the output weights, which the paper keeps apart; the bias per item is its own.
    """

    def __init__(self, settings: CollaborativeConfig, num_items: int, max_history: int) -> None:
        super().__init__()
        size = settings.hidden_size
        self.items = Items(num_items, size, bias=True)
        self.horizontal = nn.ModuleList(
            [nn.Conv1d(size, CASER_HORIZONTAL, kernel_size=height) for height in range(1, CASER_WINDOW + 1)]
        )
        self.vertical = nn.Linear(CASER_WINDOW, CASER_VERTICAL, bias=False)
        self.dropout = nn.Dropout(settings.dropout)
        self.out = nn.Linear(CASER_WINDOW * CASER_HORIZONTAL + CASER_VERTICAL * size, size)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """The state after each history, [B, H]."""
        missing = max(0, CASER_WINDOW - ids_BT.shape[1])
        image_BHT = self.items(F.pad(ids_BT, (missing, 0), value=PADDING)[:, -CASER_WINDOW:]).transpose(1, 2)
        pooled = [F.relu(convolution(image_BHT)).amax(dim=2) for convolution in self.horizontal]
        features = torch.cat([*pooled, self.vertical(image_BHT).flatten(1)], dim=1)
        state_BH: Tensor = F.relu(self.out(self.dropout(features)))
        return state_BH
