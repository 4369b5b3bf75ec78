"""HR and NDCG of ranked places. Dimensions as in places.py."""

from __future__ import annotations

import logging

import numpy as np

from sprec_ray.metrics.places import Floats, Ints, check_places

logger = logging.getLogger(__name__)


def hr(ranked_BK: Ints, targets_B: Ints, *, k: int) -> float:
    """HR@k: the share of all rows whose target is among the first k; rows with an unknown target are misses."""
    return _mean(row_hits(ranked_BK, targets_B, k=k), "hr")


def hr_se(ranked_BK: Ints, targets_B: Ints, *, k: int) -> float:
    """Binomial standard error of HR@k, ``sqrt(p (1 - p) / n)``; 0 where every row hits or every row misses."""
    share = hr(ranked_BK, targets_B, k=k)
    return float(np.sqrt(share * (1 - share) / len(ranked_BK))) if len(ranked_BK) else float("nan")


def ndcg(ranked_BK: Ints, targets_B: Ints, *, k: int) -> float:
    """NDCG@k for a single relevant item: ``1 / log2(rank + 2)`` with rank from 0, averaged over all rows."""
    return _mean(row_gains(ranked_BK, targets_B, k=k), "ndcg")


def row_hits(ranked_BK: Ints, targets_B: Ints, *, k: int) -> Floats:
    """1 where the target is among the first k, else 0, [B]; their mean is HR@k."""
    return (_target_ranks(ranked_BK, targets_B, k) < k).astype(np.float64)


def row_gains(ranked_BK: Ints, targets_B: Ints, *, k: int) -> Floats:
    """Every row's NDCG at k, [B]."""
    rank_B = _target_ranks(ranked_BK, targets_B, k)
    return np.where(rank_B < k, 1 / np.log2(rank_B + 2.0), 0.0)


def _target_ranks(ranked_BK: Ints, targets_B: Ints, k: int) -> Ints:
    """The first place of each target, [B], from 0; k when it is not among the first k or unknown."""
    check_places(ranked_BK, k)
    hit_BK = (ranked_BK[:, :k] == targets_B[:, None]) & (targets_B[:, None] >= 0)
    return np.where(hit_BK.any(axis=1), hit_BK.argmax(axis=1), k)


def _mean(values_B: Floats, name: str) -> float:
    if not len(values_B):
        logger.warning("%s of no rows is undefined: NaN", name)
        return float("nan")
    return float(values_B.sum()) / len(values_B)
