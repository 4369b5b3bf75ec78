"""Nodes that searches have reached, those of all prompts in flat arrays, and their noise.

Dimensions: E entries, C children of entries, T tokens of walks down the trie, R rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from sprec_ray.decoding.arrays import Bools, Floats, Longs, count_in_row, segment_max
from sprec_ray.decoding.catalog.trie import Trie


@dataclass(frozen=True, slots=True)
class Entries:
    """Nodes of the trie with how they were reached, [E] each."""

    row: Longs
    node: Longs
    parent: Longs
    """Where in its row's tree the token before the node's lies; -1: it follows the prompt."""
    logp: Floats
    """Sum of log-probabilities over the whole vocabulary, in nats."""
    score: Floats
    """What the search goes by."""
    phi: Floats
    """Log-probability among what the catalogue allows, at the temperature: what a sample's noise is added to."""

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, at: Longs | Bools | slice) -> Entries:
        return Entries(*(getattr(self, field.name)[at] for field in fields(self)))

    @classmethod
    def none(cls) -> Entries:
        """No entries."""
        ints, floats = np.zeros(0, dtype=np.int64), np.zeros(0)
        return cls(ints, ints, ints, floats, floats, floats)

    @classmethod
    def join(cls, *parts: Entries) -> Entries:
        """All entries of the parts, in their order."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def best_first(self) -> Entries:
        """By row, then falling score; of equal scores the lower node comes first."""
        return self[np.lexsort((self.node, -self.score, self.row))]

    def best(self, num: int) -> Entries:
        """The ``num`` best of each row, sorted."""
        candidates = self[~beyond(self.row, self.score, num)].best_first()
        return candidates[count_in_row(candidates.row) < num]

    def by_row(self) -> Iterator[tuple[int, Entries]]:
        """Each row with its entries."""
        ordered = self[np.argsort(self.row, kind="stable")]
        rows, starts = np.unique(ordered.row, return_index=True)
        for row, start, end in zip(rows.tolist(), starts, np.append(starts, len(ordered))[1:], strict=True):
            yield row, ordered[start:end]

    def worst_of(self, num: int, num_rows: int) -> Floats:
        """[R]: the score of each row's entry number ``num``; -inf where there are fewer. For sorted entries."""
        worst = np.full(num_rows, -np.inf)
        last = count_in_row(self.row) == num - 1
        worst[self.row[last]] = self.score[last]
        return worst


@dataclass(frozen=True, slots=True)
class Walk:
    """The nodes of entries, and after each of them those that are forced; first all entries, then their next ones."""

    entries: Entries
    entry_T: Longs
    node_T: Longs
    before_T: Longs
    """Which place of the walk comes before; -1 for the entries themselves."""
    end_E: Longs
    """The last place of each entry's walk."""
    generations: tuple[int, ...]

    @classmethod
    def down(cls, entries: Entries, trie: Trie, *, follow: bool) -> Walk:
        """From each entry to the first node that has several children or a leaf; without ``follow`` the entry alone."""
        first = trie.first_child_n
        entry, node = np.arange(len(entries)), entries.node
        at, before = np.arange(len(entries)), np.full(len(entries), -1)
        parts, end_E, total = [(entry, node, before)], at.copy(), len(entries)
        generations = [0, total]
        while follow and len(entry):
            child = first[node].astype(np.int64)
            forced = (first[node + 1] == child + 1) & (first[child + 1] > first[child])
            entry, node, before = entry[forced], child[forced], at[forced]
            at = total + np.arange(len(entry))
            total += len(entry)
            end_E[entry] = at
            if len(entry):
                parts.append((entry, node, before))
                generations.append(total)
        entry_T, node_T, before_T = (np.concatenate(part) for part in zip(*parts, strict=True))
        return cls(entries, entry_T, node_T, before_T, end_E, tuple(generations))


def beyond(row: Longs, score: Floats, num: int) -> Bools:
    """True for scores below the ``num`` best of their row, where a row has many more than these; ties stay."""
    out = np.zeros(len(row), dtype=bool)
    if len(row) <= 4 * num:
        return out
    order = np.argsort(row, kind="stable")
    counts = np.bincount(row)
    ends = np.cumsum(counts)
    for large in np.flatnonzero(counts > 4 * num):
        here = order[ends[large] - counts[large] : ends[large]]
        least = np.partition(score[here], -num)[-num]
        out[here[score[here] < least]] = True
    return out


def mixed_seed(*parts: Any) -> npt.NDArray[np.uint64]:
    """A number for each combination of numbers, as good as random (splitmix64)."""
    seed: npt.NDArray[np.uint64] = np.zeros(1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            seed = (seed ^ np.asarray(part).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            seed = (seed ^ (seed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            seed = (seed ^ (seed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            seed = seed ^ (seed >> np.uint64(31))
    return seed


def gumbel(seed: npt.NDArray[np.uint64]) -> Floats:
    """A standard Gumbel variable for each seed."""
    uniform = ((seed >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    noise: Floats = -np.log(-np.log(uniform))
    return noise


def conditional_gumbel(noisy_C: Floats, most_C: Floats, child_of: Longs) -> Floats:
    """Noisy log-probabilities of siblings, shifted so that the largest is their parent's (1903.06059, appendix B.3)."""
    largest_C = segment_max(noisy_C, child_of)
    with np.errstate(divide="ignore", invalid="ignore"):
        v_C = most_C - noisy_C + np.log1p(-np.exp(noisy_C - largest_C))
        shifted_C = most_C - np.maximum(v_C, 0.0) - np.log1p(np.exp(-np.abs(v_C)))
    shifted_C[noisy_C == largest_C] = most_C[noisy_C == largest_C]
    return np.where(noisy_C == -np.inf, -np.inf, shifted_C)
