"""Networks with weights large enough that every term of a formula shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sprec_ray.config.methods import CollaborativeConfig
from sprec_ray.recommenders.recommender import NETWORKS

MakeNetwork = Callable[..., Any]


@pytest.fixture
def make_network() -> MakeNetwork:
    def make(name: str, *, num_items: int = 9, max_history: int = 6, **settings: object) -> nn.Module:
        values = {"hidden_size": 4, "num_heads": 2, "num_layers": 2, "dropout": 0.5, **settings}
        network: Any = NETWORKS[name](CollaborativeConfig(model=name, **values), num_items, max_history)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator))
            network.items.embedding.weight[0] = 0
        network.eval()
        return network

    return make
