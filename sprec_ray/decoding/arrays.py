"""What search and trees do with flat arrays, whose elements belong to rows or segments.

Dimensions: C elements of segments.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Longs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def count_in_row(row: Longs) -> Longs:
    """How many earlier elements have the same row.

    >>> count_in_row(np.array([4, 4, 7, 4]))
    array([0, 1, 0, 2])
    """
    order = np.argsort(row, kind="stable")
    ordered = row[order]
    start = np.searchsorted(ordered, ordered, side="left")
    count = np.empty(len(row), dtype=np.int64)
    count[order] = np.arange(len(row)) - start
    return count


def ranges(first: Longs, counts: Longs) -> Longs:
    """All numbers from each first one on, as many as its count.

    >>> ranges(np.array([5, 9]), np.array([2, 3]))
    array([ 5,  6,  9, 10, 11])
    """
    ends = np.cumsum(counts)
    numbers: Longs = np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - (ends - counts), counts)
    return numbers


def segment_max(value_C: Floats, of_C: Longs) -> Floats:
    """[C]: the largest value among those with the same number in ``of_C``, which ascends without a gap."""
    starts = np.flatnonzero(np.diff(of_C, prepend=-1))
    largest: Floats = np.maximum.reduceat(value_C, starts)[of_C] if len(starts) else value_C
    return largest


def segment_log_sum(value_C: Floats, of_C: Longs) -> Floats:
    """Log-sums of exponentials of the values with each number in ``of_C``, which ascends without a gap."""
    starts = np.flatnonzero(np.diff(of_C, prepend=-1))
    if not len(starts):
        return value_C
    largest = np.maximum.reduceat(value_C, starts)
    largest = np.where(largest == -np.inf, 0.0, largest)
    with np.errstate(divide="ignore"):
        total: Floats = np.log(np.add.reduceat(np.exp(value_C - largest[of_C]), starts)) + largest
    return total


def segment_log_softmax(value_C: Floats, of_C: Longs) -> Floats:
    """[C]: log-probabilities among the values with the same number in ``of_C``, which ascends without a gap."""
    with np.errstate(invalid="ignore"):
        normalized: Floats = np.where(value_C == -np.inf, -np.inf, value_C - segment_log_sum(value_C, of_C)[of_C])
    return normalized


def check_logps(logps: Floats) -> None:
    """Raise ValueError where log-probabilities are not numbers, which is what a diverged adapter gives."""
    if np.isnan(logps).any():
        raise ValueError(
            "a token has log-probability nan: the weights have diverged; train with a lower learning rate, or delete "
            "the adapter and the stages after it"
        )
