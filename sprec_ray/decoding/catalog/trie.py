"""The catalogue as a trie of token ids, in flat arrays that are built once, memory-mapped and shared.

Dimensions: I items of the catalogue, n nodes of the trie, V vocabulary.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]

_FORMAT = 1
_MAX_LISTED = 5


@dataclass(frozen=True, slots=True)
class Trie:
    """The responses of a catalogue: node 0 is the empty response, and every leaf is a whole one, EOS included.

    Nodes are numbered level by level, and within a level in the order of their token sequences. So the children of a
    node are neighbours, in the order of their tokens, and the items below a node are neighbours in ``items``: the
    arrays need no pointers beyond two offsets per node. About 16 bytes per node, 4 per item.

    ``"A"`` and ``"A B"`` of a catalogue, with tokens ``A=5, B=6, EOS=1``::

        node   0   1   2   3   4      0 -5-> 1 -1-> 2 (leaf: item 0)
        token  -   5   1   6   1               -6-> 3 -1-> 4 (leaf: item 1)
    """

    token_n: Ints
    """The token that leads to a node; -1 for the root."""
    first_child_n: Ints
    """[nodes + 1]: the children of node i are the nodes from ``first_child_n[i]`` up to ``first_child_n[i + 1]``."""
    first_item_n: Ints
    last_item_n: Ints
    """The items below node i are ``items[first_item_n[i]:last_item_n[i]]``."""
    items: Ints
    """[I]: catalogue indices in the order of their token sequences; items with the same tokens in catalogue order."""

    @property
    def num_nodes(self) -> int:
        """Nodes, root and leaves included."""
        return len(self.token_n)

    @property
    def num_items(self) -> int:
        """Entries of the catalogue."""
        return len(self.items)

    @property
    def num_children_n(self) -> Ints:
        """How many children each node has."""
        counts: Ints = np.diff(self.first_child_n)
        return counts

    @property
    def depth(self) -> int:
        """Tokens of the longest response, EOS included."""
        return len(self.levels()) - 1

    def levels(self) -> list[tuple[int, int]]:
        """The first node of each level, and the one after its last; the root is the first level."""
        levels = [(0, 1)]
        while levels[-1][1] < self.num_nodes:
            stop = levels[-1][1]
            levels.append((stop, int(self.first_child_n[stop])))
        return levels

    def parent_of(self, nodes: npt.ArrayLike) -> Longs:
        """The parents of nodes other than the root."""
        parents: Longs = np.searchsorted(self.first_child_n, np.asarray(nodes), side="right") - 1
        return parents

    def tokens_to(self, node: int) -> tuple[int, ...]:
        """The tokens from the root to a node: of a leaf, a whole response."""
        tokens = []
        while node:
            tokens.append(int(self.token_n[node]))
            node = int(self.parent_of(node))
        return tuple(reversed(tokens))

    def items_below(self, node: int) -> tuple[int, ...]:
        """The catalogue indices of the items below a node; of a leaf, all that have its tokens."""
        return tuple(self.items[self.first_item_n[node] : self.last_item_n[node]].tolist())

    def leaf_of_items(self) -> Ints:
        """[I]: the leaf of every catalogue index."""
        leaves = np.flatnonzero(self.num_children_n == 0)
        counts = self.last_item_n[leaves] - self.first_item_n[leaves]
        order = np.argsort(self.first_item_n[leaves], kind="stable")
        leaf_of: Ints = np.empty(self.num_items, dtype=np.int32)
        leaf_of[self.items] = np.repeat(leaves[order], counts[order])
        return leaf_of

    def write(self, folder: Path, *, key: str) -> None:
        """Write one file per array into a folder, its description last; ``key`` names what the trie was made from."""
        folder.mkdir(parents=True, exist_ok=True)
        description = folder / "trie.json"
        description.unlink(missing_ok=True)
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))
        description.write_text(json.dumps({"format": _FORMAT, "key": key, "num_nodes": self.num_nodes}))

    @classmethod
    def read(cls, folder: Path, *, key: str) -> Trie | None:
        """The trie that ``write`` wrote under this key, memory-mapped; None when there is none or another one."""
        try:
            described = json.loads((folder / "trie.json").read_text())
            arrays = {name.name: np.load(folder / f"{name.name}.npy", mmap_mode="r") for name in fields(cls)}
        except (OSError, EOFError, ValueError):  # numpy calls an empty file the end of one
            return None
        if described != {"format": _FORMAT, "key": key, "num_nodes": len(arrays["token_n"])}:
            return None
        return cls(**arrays)


def build_trie(responses: Sequence[Sequence[int]], *, eos_token_id: int) -> Trie:
    """The trie of the catalogue's responses, response i being that of item i; each ends in EOS.

    One pass per level over the items that reach it: seconds for a million titles. Raises ValueError for an empty
    catalogue, and for responses without EOS at the end or with EOS before it, which no decoder can give.
    """
    if not len(responses):
        raise ValueError("the catalogue has no titles; there is nothing to recommend")
    lengths: Longs = np.fromiter((len(response) for response in responses), dtype=np.int64, count=len(responses))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.fromiter((token for response in responses for token in response), dtype=np.int64, count=starts[-1])
    _check(tokens, starts, lengths, eos_token_id)
    node_of_item = np.zeros(len(lengths), dtype=np.int64)
    levels: list[Longs] = [np.zeros(1, dtype=np.int64)]  # the tokens of each level's nodes
    parents: list[Longs] = [np.full(1, -1, dtype=np.int64)]
    alive, num_nodes, base = np.arange(len(lengths)), 1, int(tokens.max()) + 1
    for level in range(int(lengths.max())):
        alive = alive[lengths[alive] > level]
        keys, node_of_alive = np.unique(
            node_of_item[alive] * base + tokens[starts[alive] + level], return_inverse=True
        )  # sorted by parent, then token
        node_of_item[alive] = num_nodes + node_of_alive
        parents.append(keys // base)
        levels.append(keys % base)
        num_nodes += len(keys)
    if num_nodes >= 2**31:
        raise ValueError(f"the catalogue's trie has {num_nodes} nodes, which exceeds 2^31; split the catalogue")
    parent_n, token_n = np.concatenate(parents), np.concatenate(levels)
    token_n[0] = -1
    num_children = np.bincount(parent_n[1:], minlength=num_nodes)
    first_item_n, last_item_n = _item_ranges(parent_n, [len(level) for level in levels], node_of_item)
    return Trie(
        token_n=token_n.astype(np.int32),
        first_child_n=np.concatenate([[1], 1 + np.cumsum(num_children)]).astype(np.int32),
        first_item_n=first_item_n.astype(np.int32),
        last_item_n=last_item_n.astype(np.int32),
        items=np.argsort(first_item_n[node_of_item], kind="stable").astype(np.int32),
    )


def _check(tokens: Longs, starts: Longs, lengths: Longs, eos_token_id: int) -> None:
    empty = np.flatnonzero(lengths == 0)
    if len(empty):
        raise ValueError(f"title number {empty[0]} of the catalogue has no tokens; remove it or change the tokenizer")
    is_eos = tokens == eos_token_id
    wrong = np.flatnonzero((np.add.reduceat(is_eos, starts[:-1]) != 1) | ~is_eos[starts[1:] - 1])
    if len(wrong):
        listed = ", ".join(map(str, wrong[:_MAX_LISTED].tolist()))
        raise ValueError(
            f"{len(wrong)} titles of the catalogue (number {listed}{', ...' if len(wrong) > _MAX_LISTED else ''}) "
            "hold the end-of-sequence token, or do not end in it; rename them or change the tokenizer"
        )


def _item_ranges(parent_n: Longs, level_sizes: Sequence[int], leaf_of_item: Longs) -> tuple[Longs, Longs]:
    """Where each node's items begin and end when items are sorted by their tokens."""
    num_items_n = np.bincount(leaf_of_item, minlength=len(parent_n))
    bounds = np.concatenate([[0], np.cumsum(level_sizes)])
    for first, end in reversed(list(itertools.pairwise(bounds[1:]))):  # counts go up from the leaves
        np.add.at(num_items_n, parent_n[first:end], num_items_n[first:end])
    first_item_n = np.zeros(len(parent_n), dtype=np.int64)
    for first, end in itertools.pairwise(bounds[1:]):  # a node begins after its elder siblings
        parent, counts = parent_n[first:end], num_items_n[first:end]
        before = np.cumsum(counts) - counts
        eldest = np.concatenate([[True], parent[1:] != parent[:-1]])
        first_item_n[first:end] = first_item_n[parent] + before - before[eldest][np.cumsum(eldest) - 1]
    return first_item_n, first_item_n + num_items_n
