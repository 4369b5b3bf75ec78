"""Attention over packed groups: a token sees its prompt and the part of its response before it, and nothing else.

On a CPU the row is attended span by span, each over the spans that it sees and itself, so that hardly a hidden score is
computed. On a GPU transformers' FlexAttention runs over a block mask of the same structure.

Dimensions: H heads, G key-value heads, D head size, T tokens of the packed row, Q queries, C tokens they may see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad, scaled_dot_product_attention
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
    visible: tuple[Tensor, ...]
    """On a CPU, for each span: True at [i, j] where its token i sees token j of the spans it sees and of itself."""
    block_mask: BlockMask | None
    """On a GPU."""


def make_layout(packed: PackedGroups, device: torch.device) -> Layout:
    """The layout of a packed row, which is on the CPU still, for the attention of a device."""
    length, answering_A = len(packed.end_T), packed.answering_A.to(device)
    if device.type == "cuda":
        return Layout(length, answering_A, (), (), make_block_mask(packed.end_T, device))
    lengths = [span.end - span.first for span in packed.spans]
    visible = []
    for span in packed.spans:
        at_C = torch.arange(span.first, span.end)
        own_CC = (at_C <= at_C[:, None]) & (at_C[:, None] < packed.end_T[span.first : span.end])
        visible.append(pad(own_CC, (sum(lengths[number] for number in span.sees), 0), value=True).to(device))
    return Layout(length, answering_A, packed.spans, tuple(visible), None)


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
    queries, keys, values = (torch.split(states[0], lengths, dim=1) for states in (query, key, value))
    outputs = []
    for number, span in enumerate(layout.spans):
        skipped = span.answers - span.first if getattr(module, "answers_only", False) else 0
        if skipped:
            outputs.append(torch.zeros_like(queries[number][:, :skipped]))
        if skipped < lengths[number]:
            seen = (*span.sees, number)
            seen_key, seen_value = (torch.cat([states[one] for one in seen], dim=1) for states in (keys, values))
            # Without a mask the kernel skips what a chain hides.
            visible = None if span.is_chain and seen == (number,) and not skipped else layout.visible[number][skipped:]
            asking = queries[number][:, skipped:]
            outputs.append(_attention(asking, seen_key, seen_value, visible, scaling=scaling, softcap=softcap))
    return torch.cat(outputs, dim=1).transpose(0, 1)[None], None


AttentionInterface.register(NAME, group_attention)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, visible_QC: Tensor | None, *, scaling: float, softcap: float | None
) -> Tensor:
    """Outputs [H, Q, D] of queries over keys and values [G, C, D]; without a mask causal."""
    if softcap is None:
        output: Tensor = scaled_dot_product_attention(
            query[None],
            key[None],
            value[None],
            attn_mask=visible_QC,
            is_causal=visible_QC is None,
            scale=scaling,
            enable_gqa=len(query) != len(key),
        )
        return output[0]
    if visible_QC is None:
        visible_QC = query.new_ones(query.shape[1], key.shape[1], dtype=torch.bool).tril()
    scores = (query * scaling).reshape(len(key), -1, query.shape[2]) @ key.transpose(1, 2)
    scores = softcap * torch.tanh(scores / softcap)  # Gemma 2's, which torch's kernel does not know
    scores = scores.view(len(query), *visible_QC.shape).masked_fill(~visible_QC, -torch.inf)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    return (weights.reshape(len(key), -1, key.shape[1]) @ value).view(query.shape)
