"""GRU4Rec against a loop over gates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def gru_layer(gru: Any, layer: int, inputs: list[Tensor]) -> list[Tensor]:
    """torch's documented equations: reset, update and new gates, in this order, from zero."""
    weights_in, weights_state, bias_in, bias_state = (
        getattr(gru, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    state, outputs = torch.zeros(gru.hidden_size), []
    for vector in inputs:
        of_input = (weights_in @ vector + bias_in).chunk(3)
        of_state = (weights_state @ state + bias_state).chunk(3)
        reset = torch.sigmoid(of_input[0] + of_state[0])
        update = torch.sigmoid(of_input[1] + of_state[1])
        new = torch.tanh(of_input[2] + reset * of_state[2])
        state = (1 - update) * new + update * state
        outputs.append(state)
    return outputs


def test_gru4rec_is_the_loop_over_gates_from_the_first_item_on(make_network: Any) -> None:
    network = make_network("gru4rec")
    states_BTH = network.states(torch.tensor([[0, 0, 3, 1, 4], [5, 4, 3, 2, 1]]))
    for row, ids in enumerate(([3, 1, 4], [5, 4, 3, 2, 1])):
        vectors = [network.items.embedding.weight[i] for i in ids]
        for layer in range(2):
            vectors = gru_layer(network.gru, layer, vectors)
        expected = torch.stack([network.out.weight @ vector + network.out.bias for vector in vectors])
        torch.testing.assert_close(states_BTH[row, -len(ids) :], expected)
