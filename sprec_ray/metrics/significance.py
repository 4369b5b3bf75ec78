"""Whether two policies differ on the same test rows by more than the choice of rows explains.

Test rows are resampled, each with the answers of both policies and of all their seeds: the comparison is paired, and
what all policies find hard cancels. Two schemes give the deviations of a difference from its expectation:

- A mean over rows (``RowMetric``: HR, NDCG, popularity groups, ARP, ILD): the bootstrap. Rows are drawn with
  replacement, as many as there are.
- Any other metric: rows are drawn without replacement, nine in ten, and the deviations are scaled by sqrt(9), the
  ratio of a whole sample's spread to that of such a part of it (the delete-d jackknife: Shao and Wu, Annals of
  Statistics 17, 1989). Drawing with replacement repeats rows, so it repeats their recommendations: DivRatio, coverage
  and Gini of such a sample are those of a smaller one, and have about half their spread. With it one in five pairs of
  equal policies differ in DivRatio at the 5 % level (tests/metrics/test_significance.py).

In both, deviations are from the mean of the resamples, not from the observed difference, so that what is left of such
a bias cancels. The interval is symmetric, and excludes 0 exactly where p is 0.05 or less. Of equal policies 2 to 9 %
differ at that level in simulations, but fewer in DivRatio and coverage (0.4 to 2 %): the jackknife's variance is too
large for what most titles have in it already, never too small on average (Efron and Stein, Annals of Statistics 9,
1981). Exchanging the answers of the two policies row by row would be exact for equal policies, but misses the true
difference of policies that recommend other titles up to three times as often as it should.

Resampling rows says what other test rows would do to these trained policies. It says nothing about other seeds: with
several per method their mean is compared, and the spread over seeds belongs beside it. p-values are of one comparison;
a table of many needs a correction or a reader who expects one in twenty.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sprec_ray.data.sequences import derive_rng
from sprec_ray.metrics.kinds import CountMetric, Metric, Recommendations, RowMetric
from sprec_ray.metrics.places import Floats, Ints, PlaceCounts, check_places, divide

logger = logging.getLogger(__name__)

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
LEFT_OUT = 0.1
"""Share of the rows that a draw without replacement leaves out."""
_MOST_NUMBERS = 2**22
"""Of an array of resamples, which are computed in blocks of this size."""

Given = Recommendations | Sequence[Recommendations]
"""One policy, or one per seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapResult:
    """The difference of a metric, first less second, with its 95 % interval and the two-sided p-value of no difference.

    NaN where the metric is undefined for one of the two or for a resample, and with fewer than two rows.
    """

    difference: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    first: Given, second: Given, metric: Metric, k: int, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> BootstrapResult:
    """Compare two policies in one metric at k. Several seeds of a policy are averaged.

    ``METRICS`` are computed for all resamples at once; any other function of (recommendations, k) is called for each.
    The result depends on ``seed`` and the number of rows alone, not on the machine.

    Raises ValueError when the policies were not measured on the same rows.
    """
    return paired_bootstraps(first, second, {"": metric}, k, num_resamples=num_resamples, seed=seed)[""]


def paired_bootstraps(
    first: Given,
    second: Given,
    metrics: Mapping[str, Metric],
    k: int,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, BootstrapResult]:
    """``paired_bootstrap`` of several metrics by name, with the same results and shared work."""
    seeds = [[given] if isinstance(given, Recommendations) else list(given) for given in (first, second)]
    _check(seeds, num_resamples)
    everything = [*seeds[0], *seeds[1]]
    sign_S = np.repeat([1 / len(seeds[0]), -1 / len(seeds[1])], [len(seeds[0]), len(seeds[1])])
    num_rows = len(everything[0].targets_B)
    if num_rows < 2:
        return dict.fromkeys(metrics, _result(float("nan"), np.full(num_resamples, np.nan), 1.0))
    by_row = {name: metric for name, metric in metrics.items() if isinstance(metric, RowMetric)}
    others = {name: metric for name, metric in metrics.items() if name not in by_row}
    left_out = max(1, round(LEFT_OUT * num_rows))
    resampled: dict[str, Floats] = {}
    if by_row:
        draws = _draw_with_replacement(num_rows, num_resamples, seed)
        resampled |= _resample_means(everything, by_row, k, draws)
    if others:
        left_out_RL = _draw_left_out(num_rows, left_out, num_resamples, seed)
        resampled |= _resample_parts(everything, others, k, left_out_RL)
    results = {}
    for name, metric in metrics.items():
        difference = float(sign_S @ [metric(given, k) for given in everything])
        scale = 1.0 if name in by_row else np.sqrt((num_rows - left_out) / left_out)
        results[name] = _result(difference, resampled[name] @ sign_S, scale)
    _warn_of_undefined({f"{name}@{k}": result for name, result in results.items()})
    return results


def bootstrap_means(
    first: Sequence[Mapping[str, Floats]],
    second: Sequence[Mapping[str, Floats]],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, BootstrapResult]:
    """``paired_bootstrap`` of means over rows, from what every row adds to each metric, [B]: one mapping per seed.

    Metrics that one of the mappings lacks are left out; rows of NaN do not count. Raises ValueError when the policies
    have different numbers of rows.
    """
    everything = [*first, *second]
    _check_numbers([first, second], num_resamples)
    names = [name for name in everything[0] if all(name in values for values in everything)]
    if not names:
        return {}
    lengths = {len(values[name]) for values in everything for name in names}
    if len(lengths) > 1:
        raise ValueError(f"the policies have {sorted(lengths)} rows; compare runs of the same data and split")
    sign_S = np.repeat([1 / len(first), -1 / len(second)], [len(first), len(second)])
    if lengths.pop() < 2:
        return dict.fromkeys(names, _result(float("nan"), np.full(num_resamples, np.nan), 1.0))
    values_BC = np.stack([values[name] for name in names for values in everything], axis=1)
    means_C = divide(np.nan_to_num(values_BC).sum(axis=0), (~np.isnan(values_BC)).sum(axis=0).astype(np.float64))
    resampled_RC = _means_of_draws(values_BC, _draw_with_replacement(len(values_BC), num_resamples, seed))
    parts = zip(names, np.split(means_C, len(names)), np.split(resampled_RC, len(names), axis=1), strict=True)
    results = {name: _result(float(sign_S @ mean_S), drawn_RS @ sign_S, 1.0) for name, mean_S, drawn_RS in parts}
    _warn_of_undefined(results)
    return results


def _warn_of_undefined(results: Mapping[str, BootstrapResult]) -> None:
    undefined = [name for name, result in results.items() if np.isnan(result.p_value)]
    if undefined:
        logger.warning("no interval, reported as NaN: %s (undefined for a policy or a resample)", ", ".join(undefined))


def _check_numbers(seeds: Sequence[Sequence[object]], num_resamples: int) -> None:
    if num_resamples < 100:
        raise ValueError(f"num_resamples={num_resamples} must be 100 or more; 2000 is usual")
    if not all(seeds):
        raise ValueError("a policy without recommendations cannot be compared; pass one per seed")


def _check(seeds: Sequence[Sequence[Recommendations]], num_resamples: int) -> None:
    _check_numbers(seeds, num_resamples)
    targets_B = seeds[0][0].targets_B
    if any(not np.array_equal(given.targets_B, targets_B) for policy in seeds for given in policy):
        raise ValueError("the policies were measured on other test rows; compare runs of the same data and split")


def _result(difference: float, resampled_R: Floats, scale: float) -> BootstrapResult:
    if np.isnan(difference) or np.isnan(resampled_R).any():
        return BootstrapResult(difference=difference, low=np.nan, high=np.nan, p_value=np.nan)
    # Rounding in the last digits of equal values is no deviation.
    away_R = np.round(scale * np.abs(resampled_R - resampled_R.mean()), 12)
    reach = float(np.sort(away_R)[int(np.ceil(CONFIDENCE * (len(away_R) + 1))) - 1])
    as_far = int(np.count_nonzero(away_R >= round(abs(difference), 12)))
    return BootstrapResult(
        difference=difference,
        low=difference - reach,
        high=difference + reach,
        p_value=(1 + as_far) / (1 + len(away_R)),
    )


def _draw_with_replacement(num_rows: int, num_resamples: int, seed: int) -> Iterator[Floats]:
    """How often each row is drawn, in blocks [R, B]."""
    rng = derive_rng(seed, "bootstrap")
    block = max(1, _MOST_NUMBERS // num_rows)
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        drawn = rng.integers(0, num_rows, (size, num_rows)) + num_rows * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * num_rows).reshape(size, num_rows).astype(np.float64)


def _draw_left_out(num_rows: int, left_out: int, num_resamples: int, seed: int) -> Ints:
    """The rows that each draw leaves out, [R, L]."""
    rng = derive_rng(seed, "rows left out")
    return np.stack([rng.choice(num_rows, left_out, replace=False, shuffle=False) for _ in range(num_resamples)])


def _resample_means(
    everything: Sequence[Recommendations], metrics: Mapping[str, RowMetric], k: int, draws: Iterator[Floats]
) -> dict[str, Floats]:
    """Every metric of every resample, [R, S]."""
    values_BC = np.stack([metric.values(given, k) for metric in metrics.values() for given in everything], axis=1)
    parts = np.split(_means_of_draws(values_BC, draws), len(metrics), axis=1)
    return dict(zip(metrics, parts, strict=True))


def _means_of_draws(values_BC: Floats, draws: Iterator[Floats]) -> Floats:
    """The mean of every column in every draw, without NaN, [R, C]."""
    defined_BC = (~np.isnan(values_BC)).astype(np.float64)
    values_BC = np.nan_to_num(values_BC)
    return np.concatenate([divide(times_RB @ values_BC, times_RB @ defined_BC) for times_RB in draws])


def _resample_parts(
    everything: Sequence[Recommendations], metrics: Mapping[str, Metric], k: int, left_out_RL: Ints
) -> dict[str, Floats]:
    """Every metric of every part of the rows, [R, S]."""
    counted = {name: metric for name, metric in metrics.items() if isinstance(metric, CountMetric)}
    columns: dict[str, list[Floats]] = {name: [] for name in metrics}
    for given in everything:
        blocks = [
            {name: metric.values(given, counts) for name, metric in counted.items()}
            for counts in (_count_parts(given, k, left_out_RL) if counted else ())
        ]
        for name, metric in metrics.items():
            if name in counted:
                columns[name].append(np.concatenate([block[name] for block in blocks]))
            else:
                columns[name].append(_call_each(metric, given, k, left_out_RL))
    return {name: np.stack(column, axis=1) for name, column in columns.items()}


def _count_parts(given: Recommendations, k: int, left_out_RL: Ints) -> Iterator[PlaceCounts]:
    """The counts of every part, in blocks: those of all rows less those of the rows left out."""
    check_places(given.ranked_BK, k)
    num_rows = len(given.ranked_BK)
    titles, column_BK = np.unique(given.ranked_BK[:, :k], return_inverse=True)
    column_BK = column_BK.reshape(num_rows, k)
    width = len(titles)
    all_D = np.bincount(column_BK.ravel(), minlength=width)
    block = max(1, _MOST_NUMBERS // width)
    empty = int(np.searchsorted(titles, 0))  # -1, where there are empty places, is the first column
    for start in range(0, len(left_out_RL), block):
        rows_RL = left_out_RL[start : start + block]
        size = len(rows_RL)
        cells = column_BK[rows_RL].reshape(size, -1) + width * np.arange(size)[:, None]
        out_RD = np.bincount(cells.ravel(), minlength=size * width).reshape(size, width)
        yield PlaceCounts(
            titles_D=titles[empty:],
            counts_RD=(all_D - out_RD)[:, empty:],
            num_places=k * (num_rows - left_out_RL.shape[1]),
        )


def _call_each(metric: Callable[[Recommendations, int], float], given: Recommendations, k: int, out_RL: Ints) -> Floats:
    values = []
    for rows in out_RL:
        kept = np.ones(len(given.targets_B), dtype=np.bool_)
        kept[rows] = False
        values.append(metric(given.choose(kept), k))
    return np.array(values)
