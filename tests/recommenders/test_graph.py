"""GC-SAN: its graph by hand, its network by its formulas over distinct items."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from sprec_ray.recommenders.graph import GCSAN_ATTENTION, session_graph, share_of_rows
from tests.recommenders.torch_layers import through_layers


def test_a_session_s_graph_by_hand() -> None:
    """7 8 7 9 7 8: nodes 7, 8, 9 at places 0, 1, 3; 7 -> 8 twice, 8 -> 7, 7 -> 9, 9 -> 7 once."""
    nodes_BT, edges_BTT = session_graph(torch.tensor([[7, 8, 7, 9, 7, 8]]))
    assert nodes_BT.tolist() == [[0, 1, 0, 3, 0, 1]]
    found = {(i, j): int(edges_BTT[0, i, j]) for i, j in edges_BTT[0].nonzero().tolist()}
    assert found == {(0, 1): 2, (1, 0): 1, (0, 3): 1, (3, 0): 1}
    torch.testing.assert_close(share_of_rows(edges_BTT)[0, 0], torch.tensor([0, 2 / 3, 0, 1 / 3, 0, 0]))
    assert session_graph(torch.tensor([[0, 0, 7]]))[1].sum() == 0


def gcsan(network: Any, ids: list[int]) -> Tensor:
    """One history, with a dictionary of nodes."""
    vectors = {item: network.items.embedding.weight[item] for item in ids}
    edges = list(itertools.pairwise(ids))
    updated = {}
    for item, vector in vectors.items():
        before = [first for first, second in edges if second == item]
        after = [second for first, second in edges if first == item]
        received = []
        for layer, neighbours in ((network.incoming, before), (network.outgoing, after)):
            sent = [layer.weight @ vectors[neighbour] + layer.bias for neighbour in neighbours]
            received.append(sum(sent, torch.zeros(4)) / max(1, len(sent)))
        updated[item] = network.gate(torch.cat(received)[None], vector[None])[0]
    states = torch.stack([updated[item] for item in ids])
    outputs = through_layers(network, states[None], norm_first=False, activation="relu", causal=False)
    return GCSAN_ATTENTION * outputs[0, -1] + (1 - GCSAN_ATTENTION) * states[-1]


def test_gcsan_by_its_equations(make_network: Any) -> None:
    network = make_network("gcsan")
    histories = ([7, 8, 7, 9, 7, 8], [3, 1, 4], [5], [6, 6])
    states_BH = network(torch.tensor([[0] * (6 - len(ids)) + ids for ids in histories]))
    for row, ids in enumerate(histories):
        torch.testing.assert_close(states_BH[row], gcsan(network, ids))
