"""What a policy answers to prompts that list candidates: named titles under two rules, and the candidates' ranking.

Dimensions: ``B`` rows, ``C`` candidates of a row. Published: arXiv 2406.09215 (S-DPO) and arXiv 2312.02445 (LLaRA).
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Container, Sequence

import numpy as np
import numpy.typing as npt

from sprec_ray.data.prompts import parse_response
from sprec_ray.metrics.accuracy import hr, hr_se, ndcg, row_gains, row_hits
from sprec_ray.metrics.places import Floats, Ints
from sprec_ray.types import EvalResult, Example

logger = logging.getLogger(__name__)

Bools = npt.NDArray[np.bool_]

NUM_TOP_ITEMS = 10


def published_names(text: str, candidates: Sequence[str], titles: Container[str] = ()) -> list[str]:
    """The candidates that occur anywhere in the text, letter for letter: the rule of the published code.

    A title inside another one counts, so an answer that names the longer one names two. ``titles`` are not asked.

    >>> published_names('"Aliens"', ["Alien", "Aliens", "It"])
    ['Alien', 'Aliens']
    """
    return [title for title in candidates if title in text]


def strict_names(text: str, candidates: Sequence[str], titles: Container[str] = ()) -> list[str]:
    """The candidates that an answer names, nesting resolved.

    A response in the form that is trained, one quoted title, names the candidate that it equals, and none where it is
    another one of the catalogue's ``titles``. Of any other text the candidates count that occur in it as whole words,
    but not where they are part of a longer one that occurs.

    >>> strict_names('"Aliens"', ["Alien", "Aliens", "It"])
    ['Aliens']
    >>> strict_names("Aliens or Italian films", ["Alien", "Aliens", "It"])
    ['Aliens']
    >>> strict_names('"It Follows"', ["Alien", "Aliens", "It"], {"It Follows"})
    []
    """
    parsed = parse_response(text)
    if parsed is not None and parsed in candidates:
        return [parsed]
    if parsed is not None and parsed in titles:
        return []
    spans = [(title, start, start + len(title)) for title in candidates for start in _places(title, text)]
    return list(
        dict.fromkeys(
            title
            for title, start, end in spans
            if not any(first <= start and end <= last and last - first > end - start for _, first, last in spans)
        )
    )


def _places(title: str, text: str) -> list[int]:
    """Where a title begins as whole words, also where it overlaps itself."""
    pattern = rf"(?<!\w)(?={re.escape(title)}(?!\w))"
    return [match.start() for match in re.finditer(pattern, text)] if title in text else []


NamingRule = Callable[[str, Sequence[str], Container[str]], list[str]]
RULES: dict[str, NamingRule] = {"": strict_names, "_published": published_names}
"""By the ending of their metrics' names."""

CANDIDATE_METRICS = (
    *(f"{name}{ending}" for ending in RULES for name in ("hit_ratio", "hit_ratio_valid", "valid_ratio")),
    "title_ratio",
)
"""What only rows with candidates are measured by."""


def judge(
    texts: Sequence[str], rows: Sequence[Example], rule: NamingRule, titles: Container[str] = ()
) -> tuple[Bools, Bools]:
    """Which answers are valid, [B], because they name exactly one candidate, and which of them hit the target, [B]."""
    named = [rule(text, row.candidates, titles) for text, row in zip(texts, rows, strict=True)]
    valid_B = np.array([len(titles) == 1 for titles in named], dtype=np.bool_)
    hit_B = np.array([titles == [row.target] for titles, row in zip(named, rows, strict=True)], dtype=np.bool_)
    return valid_B, hit_B


def hit_metrics(valid_B: Bools, hit_B: Bools, *, ending: str = "") -> dict[str, float]:
    """HitRatio@1 over all rows (S-DPO) and over valid ones (LLaRA), with binomial standard errors, and ValidRatio.

    Of no rows, or no valid ones, a ratio is NaN.
    """
    num_rows, num_valid, num_hits = len(valid_B), int(valid_B.sum()), int(hit_B.sum())
    metrics: dict[str, float] = {}
    for name, total in (("hit_ratio", num_rows), ("hit_ratio_valid", num_valid)):
        share = _ratio(num_hits, total)
        metrics[f"{name}{ending}@1"] = share
        metrics[f"{name}{ending}_se@1"] = float(np.sqrt(share * (1 - share) / total)) if total else float("nan")
    metrics[f"valid_ratio{ending}"] = _ratio(num_valid, num_rows)
    undefined = [name for name, value in metrics.items() if np.isnan(value)]
    if undefined:
        logger.warning("undefined, reported as NaN: %s (no rows, or no valid answer)", ", ".join(undefined))
    return metrics


def ranking_metrics(logps_BC: Floats, rows: Sequence[Example], ks: Sequence[int]) -> dict[str, float]:
    """HR@k and NDCG@k of the candidates by log-probability, text left aside; equal ones are in the prompt's order.

    A ranking at random has HR@k = k / C.
    """
    ranked_BC, targets_B = rank_candidates(logps_BC), target_places(rows)
    metrics: dict[str, float] = {}
    for k in dict.fromkeys((1, *ks)):
        for name, metric in (("hr", hr), ("hr_se", hr_se), ("ndcg", ndcg)):
            metrics[f"{name}@{k}"] = metric(ranked_BC, targets_B, k=k)
    return metrics


def rank_candidates(logps_BC: Floats) -> Ints:
    """Places of the candidates in their prompts, most probable first, [B, C]. Raises ValueError for a NaN."""
    if np.isnan(logps_BC).any():
        row = int(np.argwhere(np.isnan(logps_BC))[0, 0])
        raise ValueError(f"a candidate of row {row} has no log-probability; the policy has collapsed: lower its rate")
    return np.argsort(-logps_BC, axis=1, kind="stable")


def target_places(rows: Sequence[Example]) -> Ints:
    """Place of each row's target among its candidates, [B]."""
    return np.array([row.candidates.index(row.target) for row in rows], dtype=np.int64)


def evaluate_candidates(
    label: str,
    texts: Sequence[str],
    logps_BC: Floats,
    rows: Sequence[Example],
    *,
    ks: Sequence[int],
    titles: Container[str] = (),
) -> EvalResult:
    """The metrics and counts of one policy: ``texts`` are its answers, ``logps_BC`` those of the candidates (nats).

    ``title_ratio`` is the share of answers that are a quoted title of ``titles``, the catalogue: a policy that does not
    choose among the candidates may still write titles, and one that has collapsed does not.
    """
    metrics: dict[str, float] = {}
    counts = {"num_rows": len(rows)}
    for ending, rule in RULES.items():
        valid_B, hit_B = judge(texts, rows, rule, titles)
        metrics |= hit_metrics(valid_B, hit_B, ending=ending)
        counts |= {f"num_valid{ending}": int(valid_B.sum()), f"num_hits{ending}": int(hit_B.sum())}
    metrics |= ranking_metrics(logps_BC, rows, ks)
    counts["num_titles"] = sum(parse_response(text) in titles for text in texts)
    metrics["title_ratio"] = _ratio(counts["num_titles"], len(rows))
    names = [strict_names(text, row.candidates, titles) for text, row in zip(texts, rows, strict=True)]
    counts["num_several_named"] = sum(len(named) > 1 for named in names)
    counts["num_nested_targets"] = sum(
        any(row.target in title for title in row.candidates if title != row.target) for row in rows
    )
    top = Counter(named[0] for named in names if len(named) == 1).most_common(NUM_TOP_ITEMS)
    return EvalResult(label=label, metrics=metrics, counts=counts, top_items=tuple(top))


def candidate_rows(
    texts: Sequence[str],
    logps_BC: Floats,
    rows: Sequence[Example],
    *,
    ks: Sequence[int],
    titles: Container[str] = (),
) -> dict[str, Floats]:
    """What every row adds to the metrics of ``evaluate_candidates``, [B]: a metric is the mean of the rows without NaN.

    Standard errors are left out.
    """
    found: dict[str, Floats] = {}
    for ending, rule in RULES.items():
        valid_B, hit_B = judge(texts, rows, rule, titles)
        found[f"hit_ratio{ending}@1"] = hit_B.astype(np.float64)
        found[f"hit_ratio_valid{ending}@1"] = np.where(valid_B, hit_B.astype(np.float64), np.nan)
        found[f"valid_ratio{ending}"] = valid_B.astype(np.float64)
    ranked_BC, targets_B = rank_candidates(logps_BC), target_places(rows)
    for k in dict.fromkeys((1, *ks)):
        found[f"hr@{k}"] = row_hits(ranked_BC, targets_B, k=k)
        found[f"ndcg@{k}"] = row_gains(ranked_BC, targets_B, k=k)
    found["title_ratio"] = np.array([parse_response(text) in titles for text in texts], dtype=np.float64)
    return found


def _ratio(count: int, total: int) -> float:
    return count / total if total else float("nan")
