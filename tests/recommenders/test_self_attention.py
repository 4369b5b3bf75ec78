"""The attention networks against torch's own layers, row by row and without padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sprec_ray.config.methods import CollaborativeConfig
from sprec_ray.recommenders.self_attention import seen_places
from tests.recommenders.torch_layers import through_layers

ROWS = ([3, 1, 4, 1, 5], [2], [7, 7, 8])


def places(network: Any, length: int) -> Tensor:
    """The vectors of positions, the last place first in the table."""
    return torch.stack([network.positions.embedding.weight[length - 1 - place] for place in range(length)])


def padded(rows: tuple[list[int], ...], length: int) -> Tensor:
    return torch.tensor([[0] * (length - len(row)) + row for row in rows])


def test_sasrec_is_torch_s_causal_encoder_with_norms_first(make_network: Any) -> None:
    network = make_network("sasrec")
    states_BTH = network.states(padded(ROWS, 5))
    for row, ids in enumerate(ROWS):
        inputs = network.items(torch.tensor([ids])) + places(network, len(ids))
        expected = through_layers(network, inputs, norm_first=True, activation="relu", causal=True)
        torch.testing.assert_close(states_BTH[row : row + 1, -len(ids) :], network.norm(expected))


def test_bert4rec_is_torch_s_encoder_with_norms_last_over_history_and_mask(make_network: Any) -> None:
    network = make_network("bert4rec")
    states_BH = network(padded(ROWS, 5))
    for row, ids in enumerate(ROWS):
        masked = [*ids, 10]
        inputs = network.items(torch.tensor([masked])) + places(network, len(masked))
        outputs = through_layers(network, inputs, norm_first=False, activation="gelu", causal=False)
        expected = nn.functional.gelu(outputs[:, -1] @ network.out.weight.T + network.out.bias)
        torch.testing.assert_close(states_BH[row : row + 1], expected)
    assert network.items.logits(states_BH).shape == (3, 9)  # the mask is never recommended


def test_core_is_a_weighted_mean_of_the_history_s_embeddings(make_network: Any) -> None:
    network = make_network("core")
    states_BH = network(padded(ROWS, 5))
    for row, ids in enumerate(ROWS):
        items = network.items(torch.tensor([ids]))
        outputs = through_layers(
            network, network.norm(items + places(network, len(ids))), norm_first=False, activation="gelu", causal=True
        )
        scores = [torch.dot(network.weight.weight[0], state).item() for state in outputs[0]]
        shares = torch.tensor(scores).exp() / torch.tensor(scores).exp().sum()
        expected = sum(share * item for share, item in zip(shares, items[0], strict=True))
        torch.testing.assert_close(states_BH[row], expected)
    torch.testing.assert_close(states_BH[1], network.items(torch.tensor(2)))


def test_a_place_of_padding_sees_itself_only() -> None:
    seen = seen_places(torch.tensor([[0, 0, 5, 6]]), causal=False)
    assert seen[0].int().tolist() == [[1, 0, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
    seen = seen_places(torch.tensor([[0, 0, 5, 6]]), causal=True)
    assert seen[0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


def test_heads_that_do_not_divide_the_hidden_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"hidden_size=4 must be a multiple of collaborative.num_heads=3"):
        CollaborativeConfig(hidden_size=4, num_heads=3)
