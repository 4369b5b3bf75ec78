"""STAMP and SHAN by their formulas, one history at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

HISTORIES = ([3, 1, 4, 1, 5], [2], [7, 8], [7, 7, 8])


def padded() -> Tensor:
    return torch.tensor([[0] * (5 - len(ids)) + ids for ids in HISTORIES])


def test_stamp_by_its_equations(make_network: Any) -> None:
    network = make_network("stamp")
    states_BH = network(padded())
    for row, ids in enumerate(HISTORIES):
        items = [network.items.embedding.weight[i] for i in ids]
        last, mean = items[-1], torch.stack(items).mean(dim=0)
        attended = torch.zeros(4)
        for item in items:
            inside = (
                network.of_item.weight @ item
                + network.of_last.weight @ last
                + network.of_mean.weight @ mean
                + network.of_mean.bias
            )
            attended += (network.weight.weight[0] @ torch.sigmoid(inside)) * item
        of_history = torch.tanh(network.history.weight @ attended + network.history.bias)
        of_last = torch.tanh(network.last.weight @ last + network.last.bias)
        logits = network.items.logits(states_BH[row])
        for item_id in range(1, 10):  # the trilinear product
            expected = (of_history * of_last * network.items.embedding.weight[item_id]).sum()
            torch.testing.assert_close(logits[item_id - 1], expected)


def attended(network: Any, layer: Any, vectors: list[Tensor]) -> Tensor:
    scores = [network.asked @ torch.relu(layer.weight @ vector + layer.bias) for vector in vectors]
    shares = torch.softmax(torch.stack(scores), dim=0)
    return torch.stack([share * vector for share, vector in zip(shares, vectors, strict=True)]).sum(dim=0)


@pytest.mark.parametrize("row", range(4))
def test_shan_by_its_equations(row: int, make_network: Any) -> None:
    """The last two items are recent; a history of no more than two has no older ones."""
    network = make_network("shan")
    items = [network.items.embedding.weight[i] for i in HISTORIES[row]]
    older, recent = items[:-2], items[-2:]
    summary = [attended(network, network.older, older)] if older else []
    torch.testing.assert_close(network(padded())[row], attended(network, network.recent, [*summary, *recent]))
