"""Which token sees which in the trees of several rows, without the tokens' keys and values.

Dimensions: R rows, S places of a row's tree, T new tokens, E places.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from sprec_ray.decoding.arrays import Longs, count_in_row
from sprec_ray.decoding.tree.interface import NewTokens

_PLACES_AT_ONCE = 64


class Forest:
    """A tree for each row; a token keeps its place until it is pruned, then another one may have it."""

    def __init__(self, num_rows: int) -> None:
        self.depth: Longs = np.zeros((num_rows, 0), dtype=np.int64)
        """[R, S]: the tokens between the prompt and this one."""
        self.sees: npt.NDArray[np.bool_] = np.zeros((num_rows, 0, 0), dtype=bool)
        """[R, S, S]: True at [row, i, j] where token j is token i or comes before it."""
        self._taken: npt.NDArray[np.bool_] = np.zeros((num_rows, 0), dtype=bool)

    def clear(self, rows: Longs) -> None:
        """Empty these rows."""
        self._taken[rows] = False

    def extent(self, rows: Longs) -> Longs:
        """How many places of each row reach to its last token."""
        extent: Longs = np.max(np.arange(1, self._taken.shape[1] + 1) * self._taken[rows], axis=1, initial=0)
        return extent

    def add(self, new: NewTokens) -> Longs:
        """[T]: the places that new tokens take."""
        slot_T = self._take(new.row_T)
        parent_T = np.where(new.before_T < 0, new.parent_T, slot_T[new.before_T])
        for first, end in itertools.pairwise(new.generations):
            row, slot, parent = (array[first:end] for array in (new.row_T, slot_T, parent_T))
            has_parent = parent >= 0
            self.sees[row, slot] = self.sees[row, parent] & has_parent[:, None]
            self.sees[row, slot, slot] = True
            self.depth[row, slot] = np.where(has_parent, self.depth[row, parent] + 1, 0)
        return slot_T

    def prune(self, row_E: Longs, slot_E: Longs) -> None:
        """Free all places but these and those before them; -1 is no place."""
        self._taken[:] = False
        num_places = self._taken.shape[1]
        kept = np.unique(row_E[slot_E >= 0] * num_places + slot_E[slot_E >= 0])
        if len(kept):
            row, slot = np.divmod(kept, num_places)
            rows, starts = np.unique(row, return_index=True)
            self._taken[rows] = np.logical_or.reduceat(self.sees[row, slot], starts)

    def _take(self, row_T: Longs) -> Longs:
        """A free place of its row for each token, the lowest first."""
        counts = np.bincount(row_T, minlength=len(self._taken))
        have, need = self._taken.shape[1], int((self._taken.sum(1) + counts).max())
        if need > have:
            more = max(need - have, have // 2, _PLACES_AT_ONCE)
            self._taken = np.pad(self._taken, ((0, 0), (0, more)))
            self.depth = np.pad(self.depth, ((0, 0), (0, more)))
            self.sees = np.pad(self.sees, ((0, 0), (0, more), (0, more)))
        slot_T: Longs = np.argsort(self._taken, axis=1, kind="stable")[row_T, count_in_row(row_T)]
        self._taken[row_T, slot_T] = True
        return slot_T
