"""What a search needs of a language model: to continue prompts along many paths, a tree of tokens for each.

Dimensions: T new tokens, W wanted log-probabilities, E places in trees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sprec_ray.decoding.arrays import Floats, Longs


@dataclass(frozen=True, slots=True)
class NewTokens:
    """Tokens to add to trees; parents come before their children."""

    row_T: Longs
    parent_T: Longs
    """The place of the token before it in its row's tree; -1 is the end of the prompt."""
    before_T: Longs
    """Where among the new tokens the one before it is; -1 where ``parent_T`` says it."""
    token_T: Longs
    generations: tuple[int, ...]
    """Where the tokens begin whose parents are new: ``(0, 10, 14, T)`` is 10 whose parents are there already, 4
    children of those, and their children."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Log-probabilities to return: of ``token_W`` after the new tokens number ``at_W``."""

    at_W: Longs
    token_W: Longs


def in_portions(new: NewTokens, wanted: Wanted, most: int) -> Iterator[tuple[Longs, NewTokens, Longs, Wanted]]:
    """The step in parts of at most ``most`` tokens or one row; which of the tokens and of the wants are in each."""
    counts = np.bincount(new.row_T)
    portion_of_row, total, number = np.zeros(len(counts), dtype=np.int64), 0, 0
    for row, count in enumerate(counts.tolist()):
        if total and total + count > most:
            total, number = 0, number + 1
        total += count
        portion_of_row[row] = number
    portion_T = portion_of_row[new.row_T]
    for one in range(number + 1):
        at_T, at_W = np.flatnonzero(portion_T == one), np.flatnonzero(portion_T[wanted.at_W] == one)
        before_T = new.before_T[at_T]
        part = NewTokens(
            new.row_T[at_T],
            new.parent_T[at_T],
            np.where(before_T < 0, -1, np.searchsorted(at_T, before_T)),
            new.token_T[at_T],
            tuple(dict.fromkeys(np.searchsorted(at_T, new.generations).tolist())),
        )
        yield at_T, part, at_W, Wanted(np.searchsorted(at_T, wanted.at_W[at_W]), wanted.token_W[at_W])


class TreeModel(Protocol):
    """A language model that continues the prompts of several rows, each along many paths."""

    num_rows: int

    def open(self, rows: Longs, prompts: Sequence[Sequence[int]], wanted: Wanted) -> Floats:
        """Begin these rows anew; ``wanted.at_W`` counts through all the prompts' tokens. Log-probabilities in nats."""

    def grow(self, new: NewTokens, wanted: Wanted) -> tuple[Longs, Floats]:
        """Add tokens to rows. Their places, and log-probabilities in nats, over the whole vocabulary."""

    def prune(self, row_E: Longs, slot_E: Longs) -> None:
        """Forget all tokens of trees that are neither at these places nor before them; -1 is no place."""
