"""GRU4Rec (arXiv 1511.06939): a recurrent network over the history. Dimensions: see ``items.py``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sprec_ray.config.methods import CollaborativeConfig
from sprec_ray.recommenders.items import PADDING, Items


class Gru4Rec(nn.Module):
    """GRU layers over item embeddings and a linear layer; the state of a place scores what comes after it.

    The paper trains sessions in parallel and carries states on over batches; here a row is read from its beginning.
    """

    def __init__(self, settings: CollaborativeConfig, num_items: int, max_history: int) -> None:
        super().__init__()
        size, layers = settings.hidden_size, settings.num_layers
        self.items = Items(num_items, size)
        self.dropout = nn.Dropout(settings.dropout)
        between = settings.dropout if layers > 1 else 0.0
        self.gru = nn.GRU(size, size, num_layers=layers, batch_first=True, dropout=between)
        self.out = nn.Linear(size, size)
        for parameter in self.gru.parameters():
            if parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)

    def states(self, ids_BT: Tensor) -> Tensor:
        """The state of every place, [B, T, H]; those of padding mean nothing."""
        num_padding_B1 = (ids_BT == PADDING).sum(dim=1, keepdim=True)
        places_T = torch.arange(ids_BT.shape[1])
        # Padding would change the state of what follows it, so it goes to the end and back.
        ahead_BT = ids_BT.gather(1, (places_T + num_padding_B1) % len(places_T))
        states_BTH = self.out(self.gru(self.dropout(self.items(ahead_BT)))[0])
        back_BT = (places_T - num_padding_B1) % len(places_T)
        moved: Tensor = states_BTH.gather(1, back_BT[:, :, None].expand_as(states_BTH))
        return moved

    def forward(self, ids_BT: Tensor) -> Tensor:
        """The state after each history, [B, H]."""
        return self.states(ids_BT)[:, -1]
