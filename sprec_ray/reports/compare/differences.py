"""Which differences of a comparison the choice of test rows does not explain."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sprec_ray.data.catalog import Catalog
from sprec_ray.evaluation.evaluate import EvaluationTask, rank_lists, recommendations
from sprec_ray.metrics.compute import METRICS
from sprec_ray.metrics.kinds import Recommendations
from sprec_ray.metrics.places import Floats
from sprec_ray.metrics.significance import BootstrapResult, bootstrap_means, paired_bootstraps
from sprec_ray.reports.compare.results import CompareData, Significance
from sprec_ray.reports.compare.tables import BASELINE, LEVEL, best_two, table_columns
from sprec_ray.reports.markup import escape, note, number, table
from sprec_ray.reports.tables import Column, column_of
from sprec_ray.storage.artifacts import ROWS_FILE, read_json, read_rows
from sprec_ray.types import Example

logger = logging.getLogger(__name__)


def bootstrap_differences(data: CompareData, runs: Path) -> tuple[Significance, ...]:
    """Every method against BIGRec, and the best against the second best of every metric of the table.

    ``runs`` is the folder of the runs. Both methods are compared on the seeds that both have finished; runs that were
    measured on other rows, or by a version that did not keep what is resampled, are not compared, with a warning.
    """
    columns = table_columns(data)
    rows: RowValues | RankedRows = RankedRows(data, runs) if _ranks_catalogue(data) else RowValues(data, runs)
    found = []
    for first, second, asked in _pairs(data, columns):
        seeds = sorted(rows.seeds(first) & rows.seeds(second))
        if seeds:
            keys = [column.key for column in asked]
            found += [
                Significance(
                    method=first,
                    rival=second,
                    metric=key,
                    difference=result.difference,
                    low=result.low,
                    high=result.high,
                    p=result.p_value,
                )
                for key, result in rows.compare(first, second, seeds, keys).items()
            ]
    return tuple(found)


def _ranks_catalogue(data: CompareData) -> bool:
    """Whether titles of the whole catalogue are recommended; metrics of candidates and pairs are means over rows."""
    measured = [result for method in data.table_methods for result in data.measured(method.label)]
    return any("div_ratio@" in key for result in measured for key in result.metrics)


def _files(data: CompareData, runs: Path, name: str) -> dict[tuple[str, int], Path]:
    """By method and seed that file of the evaluation of a finished run's last policy, of methods that all have it."""
    folder = "evaluations" if data.split == "test" else f"evaluations-{data.split}"
    files = {
        (run.method, run.seed): runs / run.name / folder / run.measured.label / name
        for run in data.runs
        if run.measured is not None
    }
    lacking = sorted({method for (method, _), file in files.items() if not file.is_file()})
    if lacking:
        logger.warning("no %s of %s: their differences are not tested; delete their runs to test them", name, lacking)
    return {key: file for key, file in files.items() if key[0] not in lacking}


@dataclass(frozen=True, slots=True)
class Added:
    """What every row of a run adds to its metrics."""

    example_ids: list[str]
    adds: Mapping[str, Floats]


class RowValues:
    """What every row adds to the metrics of every finished run, read once."""

    def __init__(self, data: CompareData, runs: Path) -> None:
        self._files, self._num_resamples = _files(data, runs, ROWS_FILE), data.num_resamples
        self._added: dict[tuple[str, int], Added] = {}

    def seeds(self, label: str) -> set[int]:
        """The seeds of a method's finished runs."""
        return {seed for method, seed in self._files if method == label}

    def compare(
        self, first: str, second: str, seeds: Sequence[int], keys: Sequence[str]
    ) -> Mapping[str, BootstrapResult]:
        """The differences of two methods in metrics that both measure; none where their rows are not the same."""
        given = [[self._read(label, seed) for seed in seeds] for label in (first, second)]
        ids = given[0][0].example_ids
        if any(added.example_ids != ids for policy in given for added in policy):
            logger.warning("%s and %s were measured on other rows: their difference is not tested", first, second)
            return {}
        chosen = [[{key: each.adds[key] for key in keys if key in each.adds} for each in policy] for policy in given]
        return bootstrap_means(*chosen, num_resamples=self._num_resamples)

    def _read(self, label: str, seed: int) -> Added:
        if (label, seed) not in self._added:
            rows = read_json(self._files[label, seed])
            adds = {name: np.array(values, dtype=np.float64) for name, values in rows["adds"].items()}
            self._added[label, seed] = Added(rows["example_ids"], adds)
        return self._added[label, seed]


class RankedRows:
    """The ranked titles of every finished run, read once, as the metrics read them."""

    def __init__(self, data: CompareData, runs: Path) -> None:
        self._split, self._num_resamples = data.split, data.num_resamples
        self._files = _files(data, runs, "grounded.json")
        measured = (run.measured for run in data.runs if run.measured is not None)
        self._kept_genres = next((tuple(result.genre_gaps) for result in measured), ())
        self._task: EvaluationTask | None = None
        self._given: dict[tuple[str, int], Recommendations] = {}
        self._measured: dict[tuple[str, int], list[tuple[str, str]]] = {}

    def seeds(self, label: str) -> set[int]:
        """The seeds with which a method has ranked the catalogue."""
        return {seed for method, seed in self._files if method == label}

    def compare(
        self, first: str, second: str, seeds: Sequence[int], keys: Sequence[str]
    ) -> Mapping[str, BootstrapResult]:
        """The differences of two methods in metrics of recommendations."""
        rows = self._rows(*next(iter(self._files)))
        if any(self._rows(label, seed) != rows for label in (first, second) for seed in seeds):
            logger.warning("%s and %s were measured on other rows: their difference is not tested", first, second)
            return {}
        given = [[self._recommended(label, seed) for seed in seeds] for label in (first, second)]
        columns = [column_of(key) for key in keys]
        found: dict[str, BootstrapResult] = {}
        for k in sorted({column.k for column in columns}):
            names = [column.name for column in columns if column.k == k]
            metrics = {name: METRICS[name] for name in names if name in METRICS}
            results = paired_bootstraps(given[0], given[1], metrics, k, num_resamples=self._num_resamples)
            found |= {f"{name}@{k}": result for name, result in results.items()}
        return found

    def _rows(self, label: str, seed: int) -> list[tuple[str, str]]:
        """The id and the target of what a run was measured on."""
        if (label, seed) not in self._measured:
            file = self._files[label, seed].parents[2] / "data" / f"{self._split}.jsonl"
            self._measured[label, seed] = [(row.example_id, row.target) for row in read_rows(file, Example)]
        return self._measured[label, seed]

    def _recommended(self, label: str, seed: int) -> Recommendations:
        """What a run recommended."""
        if (label, seed) not in self._given:
            ranked = read_json(self._files[label, seed])
            task = self._read_task(self._files[label, seed], places=max(map(len, ranked), default=1))
            self._given[label, seed] = recommendations(rank_lists(ranked, task).ranked_BK, task)
        return self._given[label, seed]

    def _read_task(self, file: Path, places: int) -> EvaluationTask:
        """The rows, which all runs of a comparison share, as the run of this file has them."""
        if self._task is None:
            run = file.parents[2]
            catalog = Catalog.read(run / "data" / "catalog.json")
            rows = read_rows(run / "data" / f"{self._split}.jsonl", Example)
            train = read_rows(run / "data" / "train.jsonl", Example)
            self._task = EvaluationTask(
                targets=[row.target for row in rows],
                histories=[row.history for row in rows],
                catalog=catalog,
                kept_genres=self._kept_genres,
                popularity=Counter(example.target for example in train if example.target in catalog),
                ks=(places,),
            )
        return self._task


def significance_table(data: CompareData) -> str:
    """The differences with their intervals and p values, folded away, and the pairs of methods that were not tested.

    Nothing before they are computed.
    """
    if not data.significance:
        return _untested(data)
    keys = list(dict.fromkeys(found.metric for found in data.significance))
    pairs = list(dict.fromkeys((found.method, found.rival) for found in data.significance))
    by_place = {(found.method, found.rival, found.metric): found for found in data.significance}
    rows = [
        [
            escape(f"{method} less {rival}"),
            *(_cell(by_place[method, rival, key]) if (method, rival, key) in by_place else "" for key in keys),
        ]
        for method, rival in pairs
    ]
    explanation = note(
        f"Difference, its 95 % interval and the two-sided p value of the paired bootstrap over the {data.split} rows "
        f"({data.num_resamples} resamples, rows drawn together for both methods and all seeds; metrics that count "
        f"distinct titles by parts of the rows, see algorithm.md). Bold below {LEVEL:g}. By chance alone one in "
        "twenty is."
    )
    headers = ["difference", *(escape(column_of(key).title) for key in keys)]
    shown = explanation + table(headers, rows, css="dense results")
    return f"<details><summary>{len(data.significance)} differences</summary>{shown}</details>{_untested(data)}"


def _untested(data: CompareData) -> str:
    """The pairs of measured methods that were not tested, in either order; of studies there are none."""
    if not data.is_tested:
        return ""
    tested = {frozenset((found.method, found.rival)) for found in data.significance}
    missing = [
        f"{method} less {rival}"
        for method, rival, _ in _pairs(data, table_columns(data))
        if frozenset((method, rival)) not in tested
    ]
    if not missing:
        return ""
    reasons = "no seed in common, other rows, or rows that an earlier version did not keep"
    return note(f"Not tested ({reasons}): {', '.join(missing)}.")


def _cell(found: Significance) -> str:
    if math.isnan(found.p):
        return "–"
    text = f"{found.difference:+.4f}"
    if found.p < LEVEL:
        text = f"<strong>{text}</strong>"
    interval = f"[{number(found.low)}, {number(found.high)}]"
    return f'{text}<span class="spread">{interval}</span><span class="spread">p {number(found.p)}</span>'


def _pairs(data: CompareData, columns: Sequence[Column]) -> Iterator[tuple[str, str, list[Column]]]:
    """(method, rival, metrics): all against BIGRec, then per metric the best against the second best."""
    labels = [method.label for method in data.table_methods if data.measured(method.label)]
    if BASELINE in labels:
        yield from ((label, BASELINE, list(columns)) for label in labels if label != BASELINE)
    against: dict[tuple[str, str], list[Column]] = {}
    for column in columns:
        best, second = best_two(data, column)
        if best is not None and second is not None and BASELINE not in (best, second):
            against.setdefault((best, second), []).append(column)
    yield from ((best, second, asked) for (best, second), asked in against.items())
