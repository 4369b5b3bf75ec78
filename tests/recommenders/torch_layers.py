"""torch's own encoder layers with the weights of ours: the second implementation of attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sprec_ray.recommenders.self_attention import Block


def torch_layer(block: Block, *, norm_first: bool, activation: str) -> nn.TransformerEncoderLayer:
    """torch's layer with the weights of ours."""
    size, inner = block.out.in_features, block.inner.out_features
    layer = nn.TransformerEncoderLayer(
        size, block.num_heads, inner, dropout=0.0, activation=activation, batch_first=True, norm_first=norm_first
    )
    named = {
        "self_attn.in_proj_weight": block.project.weight,
        "self_attn.in_proj_bias": block.project.bias,
    }
    for ours, theirs in (("out", "self_attn.out_proj"), ("inner", "linear1"), ("outer", "linear2")):
        named |= {f"{theirs}.{key}": value for key, value in getattr(block, ours).named_parameters()}
    for number, norm in enumerate(block.norms, start=1):
        named |= {f"norm{number}.{key}": value for key, value in norm.named_parameters()}
    layer.load_state_dict(named)
    return layer


def through_layers(network: Any, states_1TH: Tensor, *, norm_first: bool, activation: str, causal: bool) -> Tensor:
    length = states_1TH.shape[1]
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1) if causal else None
    for block in network.blocks:
        layer = torch_layer(block, norm_first=norm_first, activation=activation)
        states_1TH = layer(states_1TH, src_mask=hidden)
    return states_1TH
