"""Attention over packed groups: a token sees its prompt and the part of its response before it, and nothing else.

On the CPU the trunk of each tree is causal attention, and its branches are attended block by block, to the trunk and
to their own block under one softmax, so that hardly a masked score is computed. On a GPU transformers' FlexAttention
runs over a block mask of the same structure.

Dimensions: H heads, G key-value heads, D head size, T tokens of the packed row, Q queries, C tokens they may see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from sprec_ray.training.packing import PAD_MULTIPLE, PackedGroups, Span

NAME = "sprec_ray_groups"
"""The name under which transformers' models find ``group_attention``."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the attention is told of a packed row, through transformers' keyword arguments."""

    length: int
    answering_A: Tensor
    spans: tuple[Span, ...]
    hidden: tuple[Tensor, ...]
    """On a CPU, for each span: True at [i, j] where its token i does not see its token j."""
    block_mask: BlockMask | None
    """On a GPU."""


def make_layout(packed: PackedGroups, device: torch.device) -> Layout:
    """The layout of a packed row, which is on the CPU still, for the attention of a device."""
    length, answering_A = len(packed.end_T), packed.answering_A.to(device)
    if device.type == "cuda":
        return Layout(length, answering_A, (), (), make_block_mask(packed.end_T, device))
    hidden = []
    for span in packed.spans:
        at_C = torch.arange(span.first, span.end)
        hidden.append((at_C > at_C[:, None]) | (at_C[:, None] >= packed.end_T[span.first : span.end]))
    return Layout(length, answering_A, packed.spans, tuple(one.to(device) for one in hidden), None)


def make_block_mask(end_T: Tensor, device: torch.device) -> BlockMask:
    """FlexAttention's mask of a row of whole blocks, without a table of T x T.

    A token at j is seen from j up to its end, so what blocks of keys are seen from a block of queries follows from
    the least and greatest of these; where a block is seen by all, the kernel asks for no single token.
    """
    num_blocks = len(end_T) // PAD_MULTIPLE
    ends_KC = end_T.view(num_blocks, PAD_MULTIPLE)
    query_Q1 = torch.arange(num_blocks)[:, None]
    key_K = torch.arange(num_blocks)
    some_QK = (key_K <= query_Q1) & (query_Q1 * PAD_MULTIPLE < ends_KC.amax(1))
    all_QK = (key_K < query_Q1) & ((query_Q1 + 1) * PAD_MULTIPLE <= ends_KC.amin(1))
    end_T = end_T.to(device)

    def sees(_batch: Tensor, _head: Tensor, at: Tensor, other: Tensor) -> Tensor:
        return (other <= at) & (at < end_T[other])

    partly, whole = _block_lists(some_QK & ~all_QK, device), _block_lists(all_QK, device)
    return BlockMask.from_kv_blocks(*partly, *whole, BLOCK_SIZE=PAD_MULTIPLE, mask_mod=sees)


def _block_lists(table_QK: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each block of queries the number of true blocks of keys [1, 1, Q], and their places first [1, 1, Q, K]."""
    places_QK = table_QK.int().argsort(dim=1, descending=True, stable=True).int()
    return table_QK.sum(1, dtype=torch.int32)[None, None].to(device), places_QK[None, None].to(device)


def group_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *, layout: Layout, **options: Any
) -> tuple[Tensor, None]:
    """Attention output [1, T, H, D] for query [1, H, T, D], key and value [1, G, T, D].

    Where ``module.answers_only`` is set, outputs that no answering position needs are 0 and not computed.
    """
    scaling, softcap = options["scaling"], options.get("softcap")
    if layout.block_mask is not None:
        from transformers.integrations.flex_attention import flex_attention_forward

        output, _ = flex_attention_forward(
            module, query, key, value, layout.block_mask, scaling=scaling, softcap=softcap
        )
        return output, None
    # Cut into spans once: the gradient of every slice would be a whole row of zeros.
    lengths = [span.end - span.first for span in layout.spans]
    queries, keys, values = (states[0].split(lengths, dim=1) for states in (query * scaling, key, value))
    outputs = []
    for number, span in enumerate(layout.spans):
        skipped = span.answers - span.first if getattr(module, "answers_only", False) else 0
        asking, seen = queries[number][:, skipped:], (*span.sees, number)
        if skipped:
            outputs.append(torch.zeros_like(queries[number][:, :skipped]))
        if span.is_chain and len(seen) == 1 and not skipped and softcap is None:
            outputs.append(_causal_attention(asking, keys[number], values[number]))
        elif asking.shape[1]:
            hidden_QC = layout.hidden[number][skipped:]
            some = [keys[one] for one in seen], [values[one] for one in seen]
            outputs.append(_attention(asking, *some, hidden_QC=hidden_QC, softcap=softcap))
    return torch.cat(outputs, dim=1).transpose(0, 1)[None], None


AttentionInterface.register(NAME, group_attention)


def _causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of scaled queries [H, Q, D] within a chain."""
    shares = query.shape[0] != key.shape[0]
    output: Tensor = scaled_dot_product_attention(
        query[None], key[None], value[None], is_causal=True, scale=1.0, enable_gqa=shares
    )
    return output[0]


def _attention(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], *, hidden_QC: Tensor, softcap: float | None
) -> Tensor:
    """Outputs [H, Q, D] of scaled queries over the keys and values [G, C, D] of several spans.

    All scores stand side by side under one softmax, without a copy of keys or values. ``hidden_QC`` hides tokens of
    the last span.
    """
    heads, num_queries, size = query.shape
    query = query.reshape(len(keys[0]), -1, size)  # the query heads that share a key-value head
    scores = [query @ key.transpose(1, 2) for key in keys]
    if softcap is not None:  # Gemma 2's
        scores = [softcap * torch.tanh(one / softcap) for one in scores]
    own = scores[-1].view(len(query), -1, *hidden_QC.shape)
    scores[-1] = own.masked_fill(hidden_QC, -torch.inf).flatten(1, 2)
    weights = torch.cat(scores, dim=-1).softmax(-1, dtype=torch.float32).to(query.dtype)
    parts = torch.split(weights, [key.shape[1] for key in keys], dim=-1)
    output = parts[0] @ values[0]
    for part, value in zip(parts[1:], values[1:], strict=True):
        output = output + part @ value
    return output.view(heads, num_queries, size)
