"""GC-SAN (IJCAI 2019): a graph network over the history's items, then self-attention. Dimensions: see ``items.py``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sprec_ray.config.methods import CollaborativeConfig
from sprec_ray.recommenders.items import PADDING, Items
from sprec_ray.recommenders.self_attention import Block, seen_places

GCSAN_ATTENTION = 0.6
"""Weight of self-attention beside the last item's node; the paper finds 0.4 to 0.8 best."""


class GcSan(nn.Module):
    """A gated graph network and self-attention (doi 10.24963/ijcai.2019/547, eq. 1 to 9).

    A history's distinct items are nodes; an edge leads from every item to the next one. One step of the graph network
    gives a node what its neighbours send it, over incoming and outgoing edges apart.
    """

    def __init__(self, settings: CollaborativeConfig, num_items: int, max_history: int) -> None:
        super().__init__()
        size = settings.hidden_size
        self.items = Items(num_items, size)
        self.incoming = nn.Linear(size, size)
        self.outgoing = nn.Linear(size, size)
        self.gate = nn.GRUCell(2 * size, size)
        self.blocks = nn.ModuleList(
            [Block(settings, norm="after", inner_size=size) for _ in range(settings.num_layers)]
        )

    def forward(self, ids_BT: Tensor) -> Tensor:
        """The state after each history, [B, H]."""
        nodes_BT, sent_BTT = session_graph(ids_BT)
        places_BT1 = nodes_BT[:, :, None]
        items_BTH = self.items(ids_BT)
        received = torch.cat(
            [
                share_of_rows(sent_BTT.transpose(1, 2)) @ self.incoming(items_BTH),
                share_of_rows(sent_BTT) @ self.outgoing(items_BTH),
            ],
            dim=2,
        )
        states = self.gate(received.flatten(0, 1), items_BTH.flatten(0, 1)).view_as(items_BTH)
        states_BTH = states.gather(1, places_BT1.expand_as(states))
        last_BH = states_BTH[:, -1]
        seen_BTT = seen_places(ids_BT, causal=False)
        for block in self.blocks:
            states_BTH = block(states_BTH, seen_BTT)
        state_BH: Tensor = GCSAN_ATTENTION * states_BTH[:, -1] + (1 - GCSAN_ATTENTION) * last_BH
        return state_BH


def session_graph(ids_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The node of each place, which is the first place of its item, [B, T], and how often node i leads to j, [B, T, T].

    >>> nodes, edges = session_graph(torch.tensor([[0, 7, 8, 7, 8]]))
    >>> nodes.tolist(), edges[0].nonzero().tolist(), edges[0, 1, 2].item()
    ([[0, 1, 2, 1, 2]], [[1, 2], [2, 1]], 2.0)
    """
    num_places = ids_BT.shape[1]
    nodes_BT = (ids_BT[:, :, None] == ids_BT[:, None, :]).int().argmax(dim=2)
    place_of_node = torch.nn.functional.one_hot(nodes_BT, num_places).float()
    place_of_node = place_of_node * (ids_BT != PADDING)[:, :, None]
    return nodes_BT, place_of_node[:, :-1].transpose(1, 2) @ place_of_node[:, 1:]


def share_of_rows(edges_BTT: Tensor) -> Tensor:
    """Edges divided by the number of edges of their row; a row without edges stays zero."""
    return edges_BTT / edges_BTT.sum(dim=2, keepdim=True).clamp(min=1)
