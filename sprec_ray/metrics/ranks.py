"""Exact rankings from a matrix of scores: the best items of every row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sprec_ray.metrics.places import Ints

_BLOCK = 2**18
"""Scores looked at together, so that they stay in a processor's cache."""
_GROUP = 32


def rank_scores(scores_BI: npt.NDArray[np.floating], k: int) -> Ints:
    """The k items with the highest scores of every row, [B, k], best first; equal scores go by index.

    An item of score -inf ranks last, and is ranked all the same.

    >>> rank_scores(np.array([[0.1, 0.7, 0.7, 0.2]]), 3).tolist()
    [[1, 2, 3]]

    Raises ValueError for a k beyond the number of items, and for scores that are not numbers.
    """
    num_rows, num_items = scores_BI.shape
    if not 1 <= k <= num_items:
        raise ValueError(f"k={k} must be from 1 to the number of items, {num_items}")
    block = max(1, _BLOCK // num_items)
    parts = [_rank_block(scores_BI[start : start + block], k, start) for start in range(0, num_rows, block)]
    return np.concatenate(parts) if parts else np.empty((0, k), dtype=np.int64)


def _rank_block(scores_BI: npt.NDArray[np.floating], k: int, start: int) -> Ints:
    at_least_B = _reached(scores_BI, k, start)
    # Flat: much faster than numpy's search of two axes.
    rows, items = np.divmod(np.flatnonzero(scores_BI >= at_least_B[:, None]), scores_BI.shape[1])
    order = np.lexsort((items, -scores_BI[rows, items], rows))
    first_B = np.searchsorted(rows, np.arange(len(scores_BI)))
    return np.asarray(items[order][first_B[:, None] + np.arange(k)], dtype=np.int64)


def _reached(scores_BI: npt.NDArray[np.floating], k: int, start: int) -> npt.NDArray[np.floating]:
    """A score that k items of a row reach and, where scores vary, hardly more, [B].

    The k-th of the maxima of groups of items: each of the best k groups has an item that reaches it.
    """
    num_rows, num_items = scores_BI.shape
    size = max(1, min(_GROUP, num_items // k))
    grouped = num_items // size * size
    maxima_BG = scores_BI[:, :grouped].reshape(num_rows, size, -1).max(axis=1)
    wrong_B = np.isnan(maxima_BG).any(axis=1) | np.isnan(scores_BI[:, grouped:]).any(axis=1)
    if wrong_B.any():
        raise ValueError(f"row {start + int(wrong_B.argmax())} has a score that is not a number")
    return np.asarray(np.partition(maxima_BG, maxima_BG.shape[1] - k, axis=1)[:, -k])
