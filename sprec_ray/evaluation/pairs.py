"""How well scores tell liked from disliked titles: AUC and pairwise accuracy, with standard errors.

Dimensions: P positives, N negatives, B rows, each with one positive and one negative.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
PairScores = Mapping[str, tuple[Floats, Floats]]
"""By the ending of its metrics' names a score of the right and of the wrong answers, [B] each."""


def mean_probability(token_logps: Sequence[float]) -> float:
    """The mean of the tokens' probabilities: P of arXiv 2405.16127, section 4.5, as its text says.

    Its eq. 4 prints the whole response's probability over the number of tokens, which is another number.
    """
    return float(np.exp(np.asarray(token_logps)).mean())


def mean_logp(token_logps: Sequence[float]) -> float:
    """The mean log-probability of a token, nats."""
    return float(np.mean(token_logps))


def sum_logp(token_logps: Sequence[float]) -> float:
    """The log-probability of the whole response, nats."""
    return float(np.sum(token_logps))


RESPONSE_SCORES: dict[str, Callable[[Sequence[float]], float]] = {
    "": mean_probability,
    "_mean_logp": mean_logp,
    "_sum_logp": sum_logp,
}
"""By the ending of a metric's name; the paper's has none."""

PAIR_METRICS = tuple(f"{name}{ending}" for ending in RESPONSE_SCORES for name in ("auc", "pair_accuracy"))
"""The names of what ``scored_metrics`` gives of ``response_scores``, without the standard errors."""


def auc(positive_P: npt.ArrayLike, negative_N: npt.ArrayLike) -> float:
    """P(a positive scores above a negative), ties counted 1/2: the Mann-Whitney statistic over P * N.

    NaN with a warning where a class is empty or a score is not a number.

    >>> auc([3, 2], [2, 1])
    0.875
    """
    positive, negative = np.asarray(positive_P, dtype=float), np.asarray(negative_N, dtype=float)
    if not _usable(positive, negative, "auc"):
        return float("nan")
    return float(_placements(positive, negative).mean())


def paired_auc_se(positive_B: npt.ArrayLike, negative_B: npt.ArrayLike) -> float:
    """Standard error of the AUC pooled over rows, whose two scores depend on each other.

    DeLong's variance for clusters (Obuchowski 1997): the placements of a row's positive among all negatives and of its
    negative among all positives are added before their spread is taken. NaN with a warning below two rows.
    """
    positive, negative = np.asarray(positive_B, dtype=float), np.asarray(negative_B, dtype=float)
    if not _usable(positive, negative, "auc_se") or len(positive) < 2:
        return float("nan")
    return float(np.std(_auc_rows(positive, negative), ddof=1) / np.sqrt(len(positive)))


def pair_accuracy(positive_B: npt.ArrayLike, negative_B: npt.ArrayLike) -> float:
    """The share of rows whose positive scores above its own negative; a tie counts 1/2. NaN without rows."""
    wins = _wins(positive_B, negative_B, "pair_accuracy")
    return float(wins.mean()) if len(wins) else float("nan")


def pair_accuracy_se(positive_B: npt.ArrayLike, negative_B: npt.ArrayLike) -> float:
    """Standard error of ``pair_accuracy``: the spread of the rows over the root of their number."""
    wins = _wins(positive_B, negative_B, "pair_accuracy_se")
    return float(np.std(wins) / np.sqrt(len(wins))) if len(wins) else float("nan")


def pair_metrics(positive_B: npt.ArrayLike, negative_B: npt.ArrayLike, *, ending: str = "") -> dict[str, float]:
    """AUC and pairwise accuracy of rows with their standard errors; ``ending`` names the score.

    The scores may come from anywhere: the probability of an ordering, how often a title is liked, a recommender.
    """
    return {
        f"auc{ending}": auc(positive_B, negative_B),
        f"auc{ending}_se": paired_auc_se(positive_B, negative_B),
        f"pair_accuracy{ending}": pair_accuracy(positive_B, negative_B),
        f"pair_accuracy{ending}_se": pair_accuracy_se(positive_B, negative_B),
    }


def pair_rows(positive_B: npt.ArrayLike, negative_B: npt.ArrayLike, *, ending: str = "") -> dict[str, Floats]:
    """What every row adds to the metrics, [B]: their mean over the rows is the metric, their spread its error.

    A row's part of the pooled AUC is that of DeLong's variance: what the row changes, to first order, in the AUC of all
    rows. NaN where the metric is.
    """
    positive, negative = np.asarray(positive_B, dtype=float), np.asarray(negative_B, dtype=float)
    if not _usable(positive, negative, f"auc{ending}"):
        return {name: np.full(len(positive), np.nan) for name in (f"auc{ending}", f"pair_accuracy{ending}")}
    return {
        f"auc{ending}": _auc_rows(positive, negative),
        f"pair_accuracy{ending}": _wins(positive, negative, f"pair_accuracy{ending}"),
    }


def response_scores(right: Sequence[Sequence[float]], wrong: Sequence[Sequence[float]]) -> PairScores:
    """Every score of the right and the wrong ordering's token log-probabilities (nats), row by row."""
    return {
        ending: (np.array([score(row) for row in right]), np.array([score(row) for row in wrong]))
        for ending, score in RESPONSE_SCORES.items()
    }


def yes_no_scores(logps: Sequence[Sequence[Sequence[float]]]) -> PairScores:
    """The log-odds of Yes. for the liked and the disliked title of every row, from token log-probabilities (nats).

    They order titles as P(Yes.) does, which rounds to 0 or 1, and so to ties, where they are large.
    Entries alternate: a liked title's right word (Yes.) and its wrong one, then a disliked title's (No., then Yes.).
    """
    right = np.array([sum_logp(first) - sum_logp(second) for first, second in logps])
    return {"": (right[::2], -right[1::2])}


def scored_metrics(scores: PairScores) -> dict[str, float]:
    """``pair_metrics`` by every score."""
    metrics: dict[str, float] = {}
    for ending, both in scores.items():
        metrics |= pair_metrics(*both, ending=ending)
    return metrics


def scored_rows(scores: PairScores) -> dict[str, Floats]:
    """``pair_rows`` by every score."""
    rows: dict[str, Floats] = {}
    for ending, both in scores.items():
        rows |= pair_rows(*both, ending=ending)
    return rows


def _auc_rows(positive: Floats, negative: Floats) -> Floats:
    above = _placements(positive, negative)  # of every positive: share of negatives below it
    below = 1 - _placements(negative, positive)  # of every negative: share of positives above it
    return np.asarray(above + below - above.mean(), dtype=float)


def _placements(scores: Floats, others: Floats) -> Floats:
    """For each score the share of the others below it, equal ones counted 1/2."""
    ordered = np.sort(others)
    below, not_above = (np.searchsorted(ordered, scores, side=side) for side in ("left", "right"))
    return np.asarray((below + not_above) / (2 * len(others)), dtype=float)


def _wins(positive_B: npt.ArrayLike, negative_B: npt.ArrayLike, name: str) -> Floats:
    positive, negative = np.asarray(positive_B, dtype=float), np.asarray(negative_B, dtype=float)
    assert len(positive) == len(negative), "a row has one positive and one negative"
    if not _usable(positive, negative, name):
        return np.array([])
    return np.where(positive == negative, 0.5, (positive > negative).astype(float))


def _usable(positive: Floats, negative: Floats, name: str) -> bool:
    if not len(positive) or not len(negative):
        logger.warning("%s is undefined: there are %d positives and %d negatives", name, len(positive), len(negative))
        return False
    if np.isnan(positive).any() or np.isnan(negative).any():
        logger.warning("%s is undefined: a score is not a number", name)
        return False
    return True
