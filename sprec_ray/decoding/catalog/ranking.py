"""Log-probabilities of given responses and of every item of the catalogue, from a tree of tokens.

Dimensions: N responses, I items, n nodes of a part of the trie, P prompts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from sprec_ray.decoding.arrays import Floats, Longs, check_logps, ranges
from sprec_ray.decoding.catalog.trie import Trie
from sprec_ray.decoding.tree.interface import NewTokens, TreeModel, Wanted

_NODES_AT_ONCE = 256
"""Nodes of the trie that are computed for a prompt in one pass: a token is masked against all of them."""


def score_responses(model: TreeModel, prompt: Sequence[int], responses: Sequence[Sequence[int]]) -> Floats:
    """[N]: the log-probability of each response to a prompt, each a branch of one tree; nats."""
    num = len(responses)
    last = np.full(num, len(prompt) - 1)
    first = Wanted(last, np.array([response[0] for response in responses]))
    logps = model.open(np.zeros(1, dtype=np.int64), [prompt], first)
    lengths = np.array([len(response) for response in responses])
    depths = [np.flatnonzero(lengths > depth) for depth in range(1, lengths.max())]
    if not depths:
        return logps
    of_T = np.concatenate(depths)
    generations = np.cumsum([0, *(len(of) for of in depths)])
    place = np.full(num, -1)
    before_T = np.full(len(of_T), -1)
    for start, of in zip(generations.tolist(), depths, strict=False):
        before_T[start : start + len(of)] = place[of]
        place[of] = start + np.arange(len(of))
    depth_T = np.repeat(np.arange(1, len(depths) + 1), np.diff(generations))
    pairs = list(zip(of_T.tolist(), depth_T.tolist(), strict=True))
    token_T = np.array([responses[of][depth - 1] for of, depth in pairs])
    new = NewTokens(np.zeros_like(of_T), np.full(len(of_T), -1), before_T, token_T, tuple(generations.tolist()))
    wanted = Wanted(np.arange(len(of_T)), np.array([responses[of][depth] for of, depth in pairs]))
    _, inner = model.grow(new, wanted)
    return logps + np.bincount(of_T, weights=inner, minlength=num)


def rank_catalog(model: TreeModel, trie: Trie, prompts: Sequence[Sequence[int]]) -> Floats:
    """[P, I]: the log-probability of every item as the response to every prompt, in nats, EOS included.

    The whole trie is walked, what titles begin with in common once: the truth that searches are measured against, at
    the cost of all tokens of the catalogue per prompt. Items whose responses are the same tokens share a value.
    """
    logps = np.empty((len(prompts), trie.num_items))
    for start in range(0, len(prompts), model.num_rows):
        part = prompts[start : start + model.num_rows]
        rows, none = np.arange(len(part)), np.zeros(0, dtype=np.int64)
        ends = np.cumsum([len(prompt) for prompt in part])
        token, children = trie.token_n.astype(np.int64), _children(trie, np.zeros(1, dtype=np.int64))
        wanted = Wanted(np.repeat(ends - 1, len(children)), np.tile(token[children], len(part)))
        logp_Pn = np.full((len(part), trie.num_nodes), np.nan)
        logp_Pn[:, 0] = 0.0
        logp_Pn[:, children] = model.open(rows, part, wanted).reshape(len(part), -1)
        for nodes, generations in _portions(trie):
            model.prune(none, none)
            _grow(model, trie, rows, nodes, generations, logp_Pn)
        logps[start : start + len(part)] = logp_Pn[:, trie.leaf_of_items()]
        check_logps(logps[start : start + len(part)])
    return logps


def _portions(trie: Trie) -> Iterator[tuple[Longs, tuple[int, ...]]]:
    """The inner nodes above some neighbouring items, level by level and without the root; together all of them.

    Neighbouring portions repeat the nodes they share, which are few: items are in the order of their tokens.
    """
    levels = trie.levels()
    per_item = max(1.0, trie.num_nodes / trie.num_items)
    step = max(1, int(_NODES_AT_ONCE / per_item))
    for first in range(0, trie.num_items, step):
        end = min(first + step, trie.num_items)
        parts = []
        for start, stop in levels[1:]:
            at = start + np.searchsorted(trie.last_item_n[start:stop], first, side="right")
            to = start + np.searchsorted(trie.first_item_n[start:stop], end, side="left")
            nodes = np.arange(at, to)
            parts.append(nodes[trie.first_child_n[nodes] < trie.first_child_n[nodes + 1]])
        parts = [part for part in parts if len(part)]
        if parts:
            yield np.concatenate(parts), tuple(np.cumsum([0, *(len(part) for part in parts)]).tolist())


def _grow(
    model: TreeModel, trie: Trie, rows: Longs, nodes: Longs, generations: tuple[int, ...], logp_Pn: Floats
) -> None:
    """Compute a portion of the trie for all rows at once, and write the log-probabilities of its nodes' children."""
    num, num_rows = len(nodes), len(rows)
    parent = trie.parent_of(nodes)
    place_of_parent = np.where(parent > 0, np.searchsorted(nodes, parent), -1)
    first = trie.first_child_n[nodes].astype(np.int64)
    counts = trie.first_child_n[nodes + 1] - first
    child, child_of = ranges(first, counts), np.repeat(np.arange(num), counts)
    token = trie.token_n.astype(np.int64)
    # A generation holds its nodes of all rows: node after node, row after row.
    before_T = np.where(place_of_parent[:, None] < 0, -1, place_of_parent[:, None] * num_rows + rows).ravel()
    new = NewTokens(
        np.tile(rows, num),
        np.full(num * num_rows, -1),
        before_T,
        np.repeat(token[nodes], num_rows),
        tuple(bound * num_rows for bound in generations),
    )
    wanted = Wanted((child_of[:, None] * num_rows + rows).ravel(), np.repeat(token[child], num_rows))
    _, logps = model.grow(new, wanted)
    step_CP = logps.reshape(len(child), num_rows)
    for begin, end in itertools.pairwise(generations):
        here = slice(*np.searchsorted(child_of, [begin, end]))
        logp_Pn[:, child[here]] = logp_Pn[:, nodes[child_of[here]]] + step_CP[here].T


def _children(trie: Trie, nodes: Longs) -> Longs:
    first = trie.first_child_n[nodes].astype(np.int64)
    return ranges(first, trie.first_child_n[nodes + 1] - first)
