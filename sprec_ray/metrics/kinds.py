"""What metrics read, and their two kinds: means over rows, and functions of how often titles are recommended."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np

from sprec_ray.metrics.content import Bits
from sprec_ray.metrics.places import Bools, Floats, Ints, PlaceCounts, place_counts

GenreCounting = Literal["split", "whole"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogTables:
    """What metrics know of the catalogue's items. Without training events there is no popularity and are no groups."""

    num_items: int
    popularity_I: Ints | None = None
    groups_I: Ints | None = None
    """``exposure.popularity_groups`` of it."""
    genres_IW: Bits
    """``content.genre_sets``: all genres, not only the kept ones."""
    words_I2: Ints
    """``content.word_counts``."""


Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendations:
    """What the metrics read. ``weights_IG`` is one table per genre counting, empty without genres."""

    ranked_BK: Ints
    targets_B: Ints
    history_H: Ints
    weights_IG: Mapping[GenreCounting, Floats]
    catalog: CatalogTables | None = None
    """Without it the metrics of exposure.py and content.py are NaN."""
    _made: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What ``make`` returned when it was first asked for under ``key``: several metrics share it."""
        if key not in self._made:
            self._made[key] = make()
        made: Made = self._made[key]
        return made

    def counts(self, k: int) -> PlaceCounts:
        """How often each title stands in the first k places."""
        return self.once(("counts", k), lambda: place_counts(self.ranked_BK, k=k))

    @property
    def known(self) -> Recommendations:
        """The rows whose target is in the catalogue; the histories stay whole, as in the published code."""
        return self.choose(self.targets_B >= 0)

    def choose(self, rows: Ints | Bools) -> Recommendations:
        """Some rows, by index or by mask; the histories stay whole."""
        return replace(self, ranked_BK=self.ranked_BK[rows], targets_B=self.targets_B[rows])


Metric = Callable[[Recommendations, int], float]


@dataclass(frozen=True, slots=True)
class RowMetric:
    """A metric that is a mean over rows. ``values`` gives each row's, [B]; rows of NaN are left out."""

    values: Callable[[Recommendations, int], Floats]

    def __call__(self, given: Recommendations, k: int) -> float:
        """The mean; NaN without a row."""
        values_B = self.values(given, k)
        total = float(values_B.sum())
        if math.isnan(total):
            values_B = values_B[~np.isnan(values_B)]
            total = float(values_B.sum())
        return total / len(values_B) if len(values_B) else float("nan")


@dataclass(frozen=True, slots=True)
class CountMetric:
    """A metric of how often each title is recommended, to whichever rows. ``values`` gives one per choice of rows, [R].

    ``whole``, where given, computes the value of all rows, with the same result but for rounding.
    """

    values: Callable[[Recommendations, PlaceCounts], Floats]
    whole: Metric | None = None

    def __call__(self, given: Recommendations, k: int) -> float:
        """The value of all rows."""
        if self.whole is not None:
            return self.whole(given, k)
        return float(self.values(given, given.counts(k))[0])


def of_catalog(metric: Callable[[PlaceCounts, CatalogTables, Ints], Floats]) -> CountMetric:
    """A metric of counts, of the catalogue's tables and of the histories; NaN without tables."""

    def values(given: Recommendations, counts: PlaceCounts) -> Floats:
        if given.catalog is None:
            return np.full(len(counts.counts_RD), np.nan)
        return metric(counts, given.catalog, given.history_H)

    return CountMetric(values)


def of_items(rows: Callable[[Ints, CatalogTables, int], Floats | None]) -> RowMetric:
    """A mean over rows of what the catalogue's tables say of their items; NaN where the tables do not say it."""

    def values(given: Recommendations, k: int) -> Floats:
        values_B = None if given.catalog is None else rows(given.ranked_BK, given.catalog, k)
        return np.full(len(given.ranked_BK), np.nan) if values_B is None else values_B

    return RowMetric(values)
