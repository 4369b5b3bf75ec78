"""Keys and values of prompts and of the tokens that grow from them: a prompt is computed once for all its beams.

A row holds a prompt and, after it, the tokens of a tree in the order in which they were added. A new token attends the
prompt, its ancestors and itself. Nothing is copied when a beam splits, and nothing moves when one ends. The model sees
a flat list of new tokens, without padding; only the attention pads, to the row with the most new tokens.

Dimensions: R rows, T new tokens, A of them answered, S slots of a row, Q new tokens of a row, H heads, G key-value
heads (those that share keys are more queries to them), D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sprec_ray.decoding.arrays import Floats, Longs
from sprec_ray.decoding.tree.cpu_attention import attend_in_parts
from sprec_ray.decoding.tree.forest import Forest
from sprec_ray.decoding.tree.interface import NewTokens, Wanted, in_portions

_STATES_AT_ONCE = 256
"""Logits of so many tokens are turned to float32 together."""
_PROMPT_TOKENS = {"cpu": 2048, "cuda": 32768}
"""Tokens of prompts that go through the model together."""
_FEW_QUERIES = 16
"""Up to so many new tokens of a row, rows without any are attended too rather than copying the others' keys."""
_LEAST_PREFIX = 8
"""A common beginning of prompts that is worth a forward pass of its own, in tokens."""
_SLOTS_AT_ONCE = 128
"""By how many slots a row grows, at least."""


@dataclass(frozen=True, slots=True)
class _Step:
    """One forward pass, for the attention."""

    row_T: Tensor
    slot_T: Tensor
    rows: Tensor | None
    """The rows that have new tokens; None: all."""
    query_T: Tensor
    """Where the new tokens lie among the queries of all these rows."""
    shape: tuple[int, int, int]
    """Rows, most new tokens of a row, slots in use."""
    extent_R: Longs
    """Slots in use of each row."""
    distance_RQS: Tensor
    """How many tokens a seen one lies back; -1 where it is hidden."""
    mask_R1QS: Tensor
    """0 where a slot is seen, else -inf."""


@dataclass(slots=True)
class KeyValues:
    """Memory for the keys and values of every layer, [slots * G, D], which the next tree takes over.

    To ask the system for it anew can cost as much as a search.
    """

    keys: dict[Any, Tensor] = field(default_factory=dict)
    values: dict[Any, Tensor] = field(default_factory=dict)
    num_slots: int = 0


class TreeRows:
    """A ``TreeModel`` over a forward pass whose attention calls ``attend`` in every layer.

    ``forward(input_ids_T, position_ids_T, keep_A)`` returns the logits [A, V] after the tokens number ``keep_A``; it is
    given ``max_tokens`` at most, or one prompt.
    """

    def __init__(
        self,
        forward: Callable[[Tensor, Tensor, Tensor], Tensor],
        *,
        num_rows: int,
        device: torch.device,
        max_tokens: int = 2**15,
        memory: KeyValues | None = None,
    ) -> None:
        self.num_rows, self._max_tokens = num_rows, max_tokens
        self._memory = KeyValues() if memory is None else memory
        self._forward, self._device = forward, device
        self._prefix: tuple[int, ...] = ()
        self._prefix_states: list[tuple[dict[Any, Tensor], Any, Tensor]] = []
        self._lengths = np.zeros(num_rows, dtype=np.int64)
        self._capacity = self._memory.num_slots // num_rows
        self._forest = Forest(num_rows)
        self._step: _Step

    @torch.inference_mode()
    def open(self, rows: Longs, prompts: Sequence[Sequence[int]], wanted: Wanted) -> Floats:
        """See ``TreeModel.open``. What the prompts begin with in common is computed once."""
        lengths = np.array([len(prompt) for prompt in prompts])
        ends = np.cumsum(lengths)
        # What is wanted is computed for every prompt, so the common part ends before the first of it.
        prompt_W = np.searchsorted(ends, wanted.at_W, side="right")
        place_W = wanted.at_W - (ends - lengths)[prompt_W]
        shared = self._share_prefix(rows, prompts, int(min(place_W.min(initial=lengths.min()), lengths.min() - 1)))
        self._lengths[rows] = lengths
        self._forest.clear(rows)
        logps = np.empty(len(place_W))
        for first, end in self._portions(lengths - shared):
            slot_T = np.concatenate([np.arange(shared, length) for length in lengths[first:end]])
            token_T = np.concatenate([np.asarray(prompt[shared:]) for prompt in prompts[first:end]])
            here = (prompt_W >= first) & (prompt_W < end)
            start = np.cumsum(lengths - shared) - (lengths - shared)
            at_W = (start - start[first] - shared)[prompt_W[here]] + place_W[here]
            row_T = np.repeat(rows[first:end], lengths[first:end] - shared)
            logps[here] = self._run(row_T, slot_T, slot_T, token_T, None, Wanted(at_W, wanted.token_W[here]))
        return logps

    def _portions(self, num_tokens: Longs) -> Iterator[tuple[int, int]]:
        """Which prompts are computed together: enough to keep the cores busy, few enough for their caches."""
        first, total = 0, 0
        for end, tokens in enumerate(num_tokens.tolist()):
            if end > first and total + tokens > min(
                self._max_tokens, _PROMPT_TOKENS["cpu" if self._device.type == "cpu" else "cuda"]
            ):
                yield first, end
                first, total = end, 0
            total += tokens
        yield first, len(num_tokens)

    @torch.inference_mode()
    def grow(self, new: NewTokens, wanted: Wanted) -> tuple[Longs, Floats]:
        """See ``TreeModel.grow``."""
        slots, logps = np.empty(len(new.row_T), dtype=np.int64), np.empty(len(wanted.at_W))
        for at_T, part, at_W, part_wanted in in_portions(new, wanted, self._max_tokens):
            slots[at_T], logps[at_W] = self._grow(part, part_wanted)
        return slots, logps

    def _grow(self, new: NewTokens, wanted: Wanted) -> tuple[Longs, Floats]:
        slot_T = self._forest.add(new)
        length_T = self._lengths[new.row_T]
        position_T = length_T + self._forest.depth[new.row_T, slot_T]
        return slot_T, self._run(new.row_T, length_T + slot_T, position_T, new.token_T, slot_T, wanted)

    def prune(self, row_E: Longs, slot_E: Longs) -> None:
        """See ``TreeModel.prune``."""
        self._forest.prune(row_E, slot_E)

    def attend(
        self,
        layer: Any,
        query_THD: Tensor,
        key_TGD: Tensor,
        value_TGD: Tensor,
        *,
        scaling: float,
        softcap: float | None = None,
        window: int | None = None,
    ) -> Tensor:
        """A layer's attention output [T, H, D] for the new tokens; keeps their keys and values.

        ``window``: a token sees itself and the ``window - 1`` before it.
        """
        step = self._step
        num_rows, most, slots = step.shape
        heads, groups, size = query_THD.shape[1], key_TGD.shape[1], query_THD.shape[2]
        keys, values = (states[:, :, :slots] for states in self._keep(layer, key_TGD, value_TGD))
        if step.rows is not None:
            keys, values = keys[step.rows], values[step.rows]
        # Rows with fewer new tokens keep what was in memory as their last queries; nobody reads what comes of it.
        query = query_THD.new_empty(num_rows * most, heads * size)
        query.index_copy_(0, step.query_T, query_THD.reshape(len(query_THD), -1))
        query = query.view(num_rows, most, heads, size).transpose(1, 2).reshape(num_rows, groups, -1, size)
        mask = step.mask_R1QS.to(query.dtype)
        if window is not None:
            mask = mask.masked_fill(step.distance_RQS[:, None] >= window, -torch.inf)
        if heads != groups:
            mask = mask[:, :, None].expand(-1, -1, heads // groups, -1, -1).flatten(2, 3)
        if softcap is None and query.device.type != "cpu":
            output = scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)
        else:
            output = attend_in_parts(query * scaling, keys, values, mask, step.extent_R, softcap)
        output = output.view(num_rows, heads, most, size).transpose(1, 2).reshape(-1, heads * size)
        return output.index_select(0, step.query_T).view(query_THD.shape)

    def _run(
        self, row_T: Longs, slot_T: Longs, position_T: Longs, token_T: Longs, tree_T: Longs | None, wanted: Wanted
    ) -> Floats:
        """One forward pass over new tokens; ``tree_T``: their places in their trees, None for those of prompts."""
        rows = np.unique(row_T)
        self._reserve(slots := int((self._lengths[rows] + self._forest.extent(rows)).max()))
        self._step = self._make_step(row_T, slot_T, position_T, tree_T, slots)
        keep, state_W = np.unique(wanted.at_W, return_inverse=True)
        ids, positions, keep_A = (torch.from_numpy(array).to(self._device) for array in (token_T, position_T, keep))
        logits_AV = self._forward(ids, positions, keep_A)
        total_A = torch.cat([part.float().logsumexp(1) for part in torch.split(logits_AV, _STATES_AT_ONCE)])
        state, token = (torch.from_numpy(array).to(self._device) for array in (state_W, wanted.token_W))
        logps: Floats = (logits_AV[state, token].float() - total_A[state]).double().cpu().numpy()
        return logps

    def _make_step(self, row_T: Longs, slot_T: Longs, position_T: Longs, tree_T: Longs | None, slots: int) -> _Step:
        rows, place_T, counts = np.unique(row_T, return_inverse=True, return_counts=True)
        if counts.max() <= _FEW_QUERIES and 2 * len(rows) > self.num_rows:  # to attend all costs less than to copy keys
            rows, place_T, counts = np.arange(self.num_rows), row_T, np.bincount(row_T, minlength=self.num_rows)
        order = np.argsort(place_T, kind="stable")
        query_T = np.empty(len(row_T), dtype=np.int64)
        query_T[order] = np.arange(len(row_T)) - np.repeat(np.cumsum(counts) - counts, counts)
        most = int(counts.max())
        length_T = self._lengths[row_T]
        # What lies how far back: a prompt's tokens by their place, a tree's by their depth.
        distance_TS = np.broadcast_to(position_T[:, None] - np.arange(slots), (len(row_T), slots)).copy()
        if tree_T is None:
            distance_TS[distance_TS < 0] = -1
        else:
            distance_TS[np.arange(slots) >= length_T[:, None]] = -1
            seen_T, seen_slot = np.nonzero(self._forest.sees[row_T, tree_T])
            distance_TS[seen_T, length_T[seen_T] + seen_slot] = (
                position_T[seen_T] - length_T[seen_T] - self._forest.depth[row_T[seen_T], seen_slot]
            )
        distance_RQS = np.full((len(rows), most, slots), -1, dtype=np.int32)
        distance_RQS[place_T, query_T] = distance_TS
        distance = torch.from_numpy(distance_RQS).to(self._device)
        mask = torch.zeros(distance.shape, device=self._device).masked_fill_(distance < 0, -torch.inf)
        query, row, slot = (
            torch.from_numpy(array).to(self._device) for array in (place_T * most + query_T, row_T, slot_T)
        )
        which = None if len(rows) == self.num_rows else torch.from_numpy(rows).to(self._device)
        extent_R = np.minimum(self._lengths[rows] + self._forest.extent(rows), slots)
        return _Step(row, slot, which, query, (len(rows), most, slots), extent_R, distance, mask[:, None])

    def _keep(self, layer: Any, key_TGD: Tensor, value_TGD: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's keys and values [rows, G, slots, D], those of the new tokens among them."""
        groups, size = key_TGD.shape[1:]
        head_G = torch.arange(groups, device=self._device)
        place_TG = (self._step.row_T[:, None] * groups + head_G) * self._capacity + self._step.slot_T[:, None]
        memory = self._memory
        for states, new_TGD in ((memory.keys, key_TGD), (memory.values, value_TGD)):
            if layer not in states:
                states[layer] = new_TGD.new_zeros(memory.num_slots * groups, size)
            states[layer].index_copy_(0, place_TG.flatten(), new_TGD.flatten(0, 1))
        return self._of_rows(memory.keys[layer]), self._of_rows(memory.values[layer])

    def _of_rows(self, states: Tensor) -> Tensor:
        """Keys or values as [rows, G, slots, D]."""
        groups = len(states) // self._memory.num_slots
        used = states[: self.num_rows * groups * self._capacity]
        return used.view(self.num_rows, groups, self._capacity, states.shape[1])

    def _reserve(self, slots: int) -> None:
        """Make room for so many slots in every row."""
        if slots <= self._capacity:
            return
        before, capacity = self._capacity, slots + max(_SLOTS_AT_ONCE, slots // 2)
        for states in (self._memory.keys, self._memory.values):
            for layer, kept in states.items():
                rows = self._of_rows(kept)
                grown = kept.new_zeros(*rows.shape[:2], capacity, rows.shape[3])
                grown[:, :, :before] = rows
                states[layer] = grown.flatten(0, 2)
        self._capacity, self._memory.num_slots = capacity, self.num_rows * capacity

    def _share_prefix(self, rows: Longs, prompts: Sequence[Sequence[int]], most: int) -> int:
        """Put what the prompts begin with in common into their rows; its length."""
        # In the order of their tokens all prompts lie between these two.
        first, last = min(prompts, key=list)[:most], max(prompts, key=list)[:most]
        length = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), most)
        known = self._prefix[:length] == tuple(first[: len(self._prefix)]) and len(self._prefix) > 0
        if known and len(self._prefix) <= length:
            length = len(self._prefix)
        elif length < _LEAST_PREFIX or len(prompts) == 1:
            return 0
        else:
            row, self._prefix = rows[:1], tuple(first[:length])
            self._lengths[row] = length
            at = np.arange(length)
            nothing = Wanted(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
            self._run(np.repeat(row, length), at, at, np.asarray(self._prefix), None, nothing)
            self._prefix_states = [
                (states, layer, self._of_rows(kept)[row, :, :length].clone())
                for states in (self._memory.keys, self._memory.values)
                for layer, kept in states.items()
            ]
        self._reserve(length)
        where = torch.from_numpy(np.asarray(rows)).to(self._device)
        for states, layer, shared in self._prefix_states:
            self._of_rows(states[layer])[where, :, :length] = shared
        return length
