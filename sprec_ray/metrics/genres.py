"""Genre unfairness: what genres get of the recommendations less what they had in the histories (GP - GH).

Dimensions as in places.py; ``G`` are the kept genres here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from sprec_ray.metrics.kinds import GenreCounting
from sprec_ray.metrics.places import Floats, Ints, check_places


def mgu(gaps_G: Floats) -> Floats:
    """MGU: the mean over the kept genres (the last axis) of ``|GP - GH|``; NaN without genres."""
    return np.asarray(np.abs(gaps_G).mean(axis=-1)) if gaps_G.shape[-1] else np.full(gaps_G.shape[:-1], np.nan)


def dgu(gaps_G: Floats) -> Floats:
    """DGU: the largest less the smallest ``GP - GH`` of the kept genres (the last axis); NaN without genres."""
    return np.asarray(np.ptp(gaps_G, axis=-1)) if gaps_G.shape[-1] else np.full(gaps_G.shape[:-1], np.nan)


def genre_gaps(ranked_BK: Ints, history_H: Ints, weights_IG: Floats, *, k: int) -> Floats:
    """GP - GH per kept genre, [G]: the genres' shares of the first k places less their shares of the histories.

    Items without a kept genre, and titles outside the catalogue, add nothing to either side.
    """
    check_places(ranked_BK, k)
    recommended_G = genre_shares(ranked_BK[:, :k].ravel(), weights_IG)
    return recommended_G - genre_shares(history_H, weights_IG)


def genre_shares(indices: Ints, weights_IG: Floats) -> Floats:
    """Each kept genre's share of what these items add, [G]; NaN where they add nothing."""
    counts_I = np.bincount(indices[(indices >= 0) & (indices < len(weights_IG))], minlength=len(weights_IG))
    totals_G = counts_I @ weights_IG
    if not totals_G.sum():
        return np.full(weights_IG.shape[1], np.nan)
    return np.asarray(totals_G / totals_G.sum())


def genre_weights(item_genres: Sequence[Sequence[str]], kept: Sequence[str], *, counting: GenreCounting) -> Floats:
    """What each item adds to each kept genre, [I, G].

    An item with g kept genres adds 1/g to each of them (``split``, SPRec) or 1 (``whole``, IFairLRS).
    """
    column = {genre: index for index, genre in enumerate(kept)}
    cells = [(row, column[genre]) for row, genres in enumerate(item_genres) for genre in genres if genre in column]
    weights_IG = np.zeros((len(item_genres), len(kept)))
    weights_IG[tuple(np.array(cells, dtype=np.int64).reshape(-1, 2).T)] = 1.0
    return weights_IG if counting == "whole" else weights_IG / np.maximum(weights_IG.sum(axis=1, keepdims=True), 1)


def kept_genres(popularity: Mapping[str, int], genres: Mapping[str, Sequence[str]], *, num: int) -> tuple[str, ...]:
    """The ``num`` genres with most training events, none of them a parent of another; ties go by name.

    Genre A is a parent of B when every catalogue item of B also has A and A has more items. Of a parent and its child
    among the chosen, the parent goes (it says less: all CDs are "CDs & Vinyl") and the next genre moves up.

    Args:
        popularity: number of training events per title; titles that are absent have none.
        genres: the genres of every catalogue title.
        num: how many to keep; fewer come back when the catalogue has fewer.
    """
    events: Counter[str] = Counter()
    items: dict[str, set[str]] = {}
    for title, names in genres.items():
        for name in set(names):
            events[name] += popularity.get(title, 0)
            items.setdefault(name, set()).add(title)
    waiting = sorted(items, key=lambda name: (-events[name], name))
    while True:
        chosen = waiting[:num]
        parents = {a for a in chosen for b in chosen if items[b] < items[a]}
        if not parents:
            return tuple(chosen)
        waiting = [name for name in waiting if name not in parents]
