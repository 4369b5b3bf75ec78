"""The table of results, once as text for a terminal and once as HTML, with the same columns."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sprec_ray.reports.markup import escape, note, number, table
from sprec_ray.reports.units import UNITS
from sprec_ray.types import EvalResult

DISPLAY_NAMES = {
    "hr": "HR",
    "ndcg": "NDCG",
    "div_ratio": "DivRatio",
    "or_ratio": "ORRatio",
    "mgu": "MGU",
    "dgu": "DGU",
    "mgu_whole": "MGU (whole)",
    "dgu_whole": "DGU (whole)",
    "gini": "Gini",
    "entropy": "Entropy",
    "coverage": "Coverage",
    "head_share": "Head",
    "mid_share": "Mid",
    "tail_share": "Tail",
    "arp": "ARP",
    "ild": "ILD",
    "token_bias": "Token bias",
    "mrr": "MRR",
    "target_logp": "log p(target)",
    "valid": "valid",
    "auc": "AUC",
    "auc_mean_logp": "AUC (mean log p)",
    "auc_sum_logp": "AUC (sum log p)",
    "pair_accuracy": "pairwise accuracy",
    "pair_accuracy_mean_logp": "pairwise (mean log p)",
    "pair_accuracy_sum_logp": "pairwise (sum log p)",
    "hit_ratio": "HitRatio",
    "hit_ratio_valid": "HitRatio of valid",
    "valid_ratio": "ValidRatio",
    "title_ratio": "titles",
    "hit_ratio_published": "HitRatio (published rule)",
    "hit_ratio_valid_published": "HitRatio of valid (published rule)",
    "valid_ratio_published": "ValidRatio (published rule)",
}
LOWER_IS_BETTER = {"or_ratio", "mgu", "dgu", "mgu_whole", "dgu_whole", "gini"}
_PAIRS_SENTENCE = (
    "AUC: the share of all pairs of a right and a wrong answer, of one row or of two, in which the right one scores "
    "higher, by mean token probability, mean or summed log-probability. Pairwise accuracy: the share of rows whose own "
    "right answer does. Ties count 1/2."
)
UNDIRECTED = {"head_share", "mid_share", "tail_share", "arp", "token_bias"}
"""Neither a higher nor a lower value is better as such."""
MORE = ("gini", "entropy", "coverage", "head_share", "mid_share", "tail_share", "arp", "ild", "token_bias")
"""The metrics of the second table."""
PAIRS = tuple(name for name in DISPLAY_NAMES if name.startswith(("auc", "pair_accuracy")))
"""The metrics of liked and disliked titles."""
_POLICY = re.compile(r"base|sft|iteration-\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column: a metric at k; k = 0 for those that have none."""

    name: str
    k: int = 0

    @property
    def key(self) -> str:
        """The metric's key in ``EvalResult.metrics``."""
        return f"{self.name}@{self.k}" if self.k else self.name

    @property
    def title(self) -> str:
        """The metric's name for people."""
        name = DISPLAY_NAMES.get(self.name, self.name)
        return f"{name}@{self.k}" if self.k else name

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller value is the better one."""
        return self.name in LOWER_IS_BETTER

    @property
    def undirected(self) -> bool:
        """Whether neither direction is better as such."""
        return self.name in UNDIRECTED

    @property
    def heading(self) -> str:
        """The metric's name with an arrow that points to better, if a direction is."""
        return self.title if self.undirected else f"{self.title} {'↓' if self.lower_is_better else '↑'}"

    @property
    def unit(self) -> str:
        """What the numbers count; empty for a metric that ``UNITS`` lacks."""
        return UNITS.get(self.name, "")

    @property
    def meaning(self) -> str:
        """The unit and which direction is better, in words."""
        if self.undirected:
            return self.unit
        direction = f"{'lower' if self.lower_is_better else 'higher'} is better"
        return f"{self.unit}, {direction}" if self.unit else direction


def is_policy(result: EvalResult) -> bool:
    """Whether a row is a policy of the run (base, sft, iteration-0 ...) and not a baseline beside it."""
    return _POLICY.fullmatch(result.label) is not None


def places(results: Sequence[EvalResult]) -> list[int]:
    """Every k the results were measured at, ascending."""
    return sorted({int(key.split("@")[1]) for result in results for key in result.metrics if "@" in key})


def columns(results: Sequence[EvalResult]) -> list[Column]:
    """HR and NDCG at the largest k, then DivRatio, ORRatio and MGU at every k, then what has no k; if measured."""
    ks = places(results)
    if any("hit_ratio@1" in result.metrics for result in results):
        return _candidate_columns(ks[-1])
    wanted = [Column(name=name, k=ks[-1]) for name in ("hr", "ndcg") if ks]
    wanted += [Column(name=name, k=k) for name in ("div_ratio", "or_ratio", "mgu") for k in ks]
    wanted += [Column(name=name) for name in ("mrr", "target_logp", "valid", *PAIRS)]
    return [column for column in wanted if any(column.key in result.metrics for result in results)]


def _candidate_columns(k: int) -> list[Column]:
    """S-DPO's figures by our rule and by the published one, and the ranking of the candidates by log-probability."""
    named = []
    for rule in ("", "_published"):
        named += [Column(name=f"{name}{rule}", k=1) for name in ("hit_ratio", "hit_ratio_valid")]
        named.append(Column(name=f"valid_ratio{rule}"))
    return [*named, Column(name="title_ratio"), Column(name="hr", k=1), Column(name="ndcg", k=k)]


def more_columns(results: Sequence[EvalResult]) -> list[Column]:
    """The metrics of the second table at the largest k, where a value is defined."""
    wanted = [Column(name=name, k=k) for name in MORE for k in places(results)[-1:]]
    values = {column: [result.metrics.get(column.key, math.nan) for result in results] for column in wanted}
    return [column for column in wanted if not all(map(math.isnan, values[column]))]


def all_columns(results: Sequence[EvalResult]) -> list[Column]:
    """Every measured metric, those with a display name first; standard errors are not metrics."""
    keys = dict.fromkeys(key for result in results for key in result.metrics)
    known = [Column(name=name, k=k) for name in DISPLAY_NAMES for k in (0, *places(results))]
    others = [column_of(key) for key in keys if not key.partition("@")[0].endswith("_se")]
    return list(dict.fromkeys([*(column for column in known if column.key in keys), *others]))


def column_of(key: str) -> Column:
    """The column of a metric's key, ``ndcg@5``. A name that has no display name is shown as it is."""
    name, _, k = key.partition("@")
    return Column(name=name, k=int(k)) if k.isdecimal() else Column(name=key)


def cell(result: EvalResult, column: Column) -> str:
    """A value as text, with its standard error where there is one; valid in per cent."""
    value = result.metrics.get(column.key)
    if column.name == "valid" and value is not None and not math.isnan(value):
        return f"{100 * value:.1f} %"
    error = result.metrics.get(f"{column.name}_se@{column.k}" if column.k else f"{column.name}_se")
    if error is not None and not math.isnan(error):
        return f"{number(value)} ± {error:.4f}"
    return number(value)


def best_labels(results: Sequence[EvalResult], column: Column) -> set[str]:
    """The labels of the best trained policies; the base and the baselines are not compared.

    A base model whose answers are noise has the best diversity, which says nothing.
    """
    values = {
        result.label: result.metrics[column.key]
        for result in results
        if is_policy(result) and result.label != "base" and not math.isnan(result.metrics.get(column.key, math.nan))
    }
    if len(values) < 2 or column.undirected:
        return set()
    best = min(values.values()) if column.name in LOWER_IS_BETTER else max(values.values())
    return {label for label, value in values.items() if value == best}


def format_table(results: Sequence[EvalResult]) -> str:
    """The results as aligned plain text, one line per row; ``*`` marks the best trained policy of a column."""
    shown = columns(results)
    lines = [["", *(column.heading for column in shown)]]
    for result in results:
        marks = ["*" if result.label in best_labels(results, column) else " " for column in shown]
        cells = [cell(result, column) + mark for column, mark in zip(shown, marks, strict=True)]
        lines.append([_one_line(result.label), *cells])
    widths = [max(len(line[index]) for line in lines) for index in range(len(shown) + 1)]
    text = []
    for line in lines:
        cells = [part.rjust(width) for part, width in zip(line[1:], widths[1:], strict=True)]
        text.append("  ".join([line[0].ljust(widths[0]), *cells]).rstrip())
    return "\n".join(text) + "\n"


def results_table(results: Sequence[EvalResult]) -> str:
    """The results as an HTML table, policies before baselines, with what its marks mean below."""
    legend = note(
        "Best of the trained policies in bold; the base and the baselines are for orientation. ± is one standard "
        "error over the test rows. "
        + _accuracy_sentence(results)
        + (_PAIRS_SENTENCE if any("auc" in result.metrics for result in results) else "")
    )
    return _table(results, columns(results)) + legend


def more_table(results: Sequence[EvalResult]) -> str:
    """A second table, folded away: how recommendations spread over the catalogue, and what they are like."""
    shown = more_columns(results)
    if not shown:
        return ""
    legend = note(
        "Gini, entropy (nats) and coverage of the titles' counts of recommendations, over the whole catalogue. Head "
        "and tail: the shares of the recommendations that go to the most and to the least popular titles with a fifth "
        "of the training events each; mid: to the rest. ARP: mean number of training events of a recommended title. "
        "ILD: mean Jaccard distance of the genres of two recommendations of a row. Token bias: the "
        "share of the histories' most frequent words in the recommended titles less that in the histories. Without an "
        "arrow neither direction is better as such."
    )
    return f"<details><summary>More on diversity and popularity</summary>{_table(results, shown)}{legend}</details>"


def _table(results: Sequence[EvalResult], shown: Sequence[Column]) -> str:
    rows = []
    for result in sorted(results, key=lambda result: not is_policy(result)):
        label = escape(result.label) if is_policy(result) else f'<span class="muted">{escape(result.label)}</span>'
        cells = [
            f'<strong class="best">{escape(cell(result, column))}</strong>'
            if result.label in best_labels(results, column)
            else escape(cell(result, column))
            for column in shown
        ]
        rows.append([label, *cells])
    return table(["policy", *(escape(column.heading) for column in shown)], rows, css="results")


def _accuracy_sentence(results: Sequence[EvalResult]) -> str:
    """Which policies the standard error cannot tell from the best HR."""
    ks = places(results)
    trained = [result for result in results if is_policy(result) and result.label != "base"]
    name = "hr" if all("hit_ratio@1" not in result.metrics for result in trained) else "hit_ratio"
    k, shown = (ks[-1], "HR") if name == "hr" and ks else (1, DISPLAY_NAMES[name])
    if len(trained) < 2 or any(f"{name}_se@{k}" not in result.metrics for result in trained):
        return ""
    best = max(trained, key=lambda result: result.metrics[f"{name}@{k}"])
    others = [result for result in trained if result is not best]
    close = [result.label for result in others if hr_differs(result, best, k, name=name) is False]
    if not close:
        return f"The {shown} of {best.label} is more than two standard errors of the difference above every other."
    return (
        f"Within two standard errors of the best {shown} ({best.label}), so not told apart by "
        f"{best.counts['num_rows']} test rows: {', '.join(close)}."
    )


def hr_differs(before: EvalResult, after: EvalResult, k: int, *, name: str = "hr") -> bool | None:
    """Whether HR@k differs by more than two standard errors of the difference; None when it cannot be told.

    ``name`` may be another share with a standard error. The two share their test rows, so treating them as
    independent is, if anything, too careful.
    """
    values = [
        result.metrics.get(key, math.nan) for key in (f"{name}@{k}", f"{name}_se@{k}") for result in (before, after)
    ]
    if any(math.isnan(value) for value in values):
        return None
    return abs(values[1] - values[0]) > 2 * math.hypot(values[2], values[3])


def _one_line(text: str) -> str:
    return " ".join(text.split())
