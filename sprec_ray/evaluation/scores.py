"""Exact rankings from a matrix of scores: the best items of every row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sprec_ray.evaluation.places import Ints

_BLOCK = 2**21
"""Scores looked at together, so that they stay in a processor's cache."""


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
    parts = [_rank_block(scores_BI[start : start + block], k) for start in range(0, num_rows, block)]
    return np.concatenate(parts) if parts else np.empty((0, k), dtype=np.int64)


def _rank_block(scores_BI: npt.NDArray[np.floating], k: int) -> Ints:
    best_Bk = np.partition(scores_BI, scores_BI.shape[1] - k, axis=1)[:, -k:]  # not sorted; NaN would be among them
    if np.isnan(best_Bk).any():
        raise ValueError(f"row {int(np.isnan(best_Bk).any(axis=1).argmax())} has a score that is not a number")
    rows, items = np.nonzero(scores_BI >= best_Bk[:, :1])  # k of a row, more where scores are equal to its last
    order = np.lexsort((items, -scores_BI[rows, items], rows))
    first_B = np.searchsorted(rows, np.arange(len(scores_BI)))
    return np.asarray(items[order][first_B[:, None] + np.arange(k)], dtype=np.int64)
