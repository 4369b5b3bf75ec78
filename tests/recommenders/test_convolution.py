"""Caser against loops over windows."""

from __future__ import annotations

from typing import Any

import torch


def test_caser_is_the_loops_over_horizontal_and_vertical_windows(make_network: Any) -> None:
    """Of seven items the last five are read; three are filled up with zero vectors in front."""
    network: Any = make_network("caser", max_history=7)
    states_BH = network(torch.tensor([[9, 8, 3, 1, 4, 1, 5], [0, 0, 0, 0, 6, 2, 7]]))
    for row, ids in enumerate(([3, 1, 4, 1, 5], [0, 0, 6, 2, 7])):
        image = network.items.embedding.weight[torch.tensor(ids)]
        features = []
        for height, convolution in enumerate(network.horizontal, start=1):
            for filter_HT, bias in zip(convolution.weight, convolution.bias, strict=True):
                values = [
                    ((filter_HT.T * image[start : start + height]).sum() + bias).item() for start in range(6 - height)
                ]
                features.append(max(0.0, *values))
        for column in range(4):
            features += [(weights @ image[:, column]).item() for weights in network.vertical.weight]
        expected = torch.relu(network.out.weight @ torch.tensor(features) + network.out.bias)
        torch.testing.assert_close(states_BH[row], expected)
