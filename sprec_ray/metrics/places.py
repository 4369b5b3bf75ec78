"""Ranked places as integer arrays: what stands in them, and how often.

Dimensions, here and wherever these arrays are read: ``B`` test rows, ``K`` ranked places, ``I`` catalogue items, ``G``
genres, ``H`` history events, ``D`` distinct recommended titles, ``R`` resamples of the test rows (1 without any).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceCounts:
    """How often each title stands in the first k places, for one or more choices of rows.

    ``PlaceCounts(titles_D=[2, 7], counts_RD=[[3, 1]], num_places=5)``: title 2 three times, title 7 once, one place
    empty.
    """

    titles_D: Ints
    """Their indices, ascending; those outside the catalogue come last."""
    counts_RD: Ints
    num_places: int
    """k times the number of rows of a choice."""

    def in_catalog(self, num_items: int) -> PlaceCounts:
        """The same without the titles outside a catalogue of ``num_items``."""
        inside = int(np.searchsorted(self.titles_D, num_items))
        return replace(self, titles_D=self.titles_D[:inside], counts_RD=self.counts_RD[:, :inside])


def place_counts(ranked_BK: Ints, *, k: int) -> PlaceCounts:
    """The counts of the first k places of all rows; empty places (-1) are not counted."""
    check_places(ranked_BK, k)
    places = ranked_BK[:, :k].ravel()
    counts = np.bincount(places[places >= 0])
    titles_D = np.flatnonzero(counts)
    return PlaceCounts(titles_D=titles_D, counts_RD=counts[None, titles_D], num_places=k * len(ranked_BK))


def place_means(values_I: Floats | Ints, ranked_BK: Ints, *, k: int) -> Floats:
    """A row's mean of a value of its items, [B]; empty places and titles outside the catalogue are left out.

    A row without an item of the catalogue has NaN.
    """
    check_places(ranked_BK, k)
    places_BK = ranked_BK[:, :k]
    inside_BK = (places_BK >= 0) & (places_BK < len(values_I))
    if not len(values_I):
        return np.full(len(ranked_BK), np.nan)
    ones_K = np.ones(k)  # products with it are numpy's fastest sums of short rows
    return divide((values_I[np.where(inside_BK, places_BK, 0)] * inside_BK) @ ones_K, inside_BK @ ones_K)


def check_places(ranked_BK: Ints, k: int) -> None:
    """ValueError where there are fewer than k places."""
    if ranked_BK.ndim != 2 or ranked_BK.shape[1] < k:
        raise ValueError(f"k={k} needs ranked_BK of shape [B, {k}] or wider, got {ranked_BK.shape}; pad with -1")


def divide(numerators: Floats | Ints, denominators: Floats | Ints | int) -> Floats:
    """Element by element, NaN where the denominator is 0."""
    quotients = np.full(np.broadcast_shapes(np.shape(numerators), np.shape(denominators)), np.nan)
    np.divide(numerators, denominators, out=quotients, where=np.not_equal(denominators, 0))
    return quotients
