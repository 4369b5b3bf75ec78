"""The comparison's tests read the rankings of runs from their folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sprec_ray.data.catalog import Catalog
from sprec_ray.reports.compare.differences import bootstrap_differences, significance_table
from sprec_ray.reports.compare.results import CompareData
from sprec_ray.reports.compare.tables import marks
from sprec_ray.reports.tables import column_of
from sprec_ray.storage.artifacts import write_json, write_rows
from sprec_ray.types import Example
from tests.reports.compare.made_comparison import MEANS, comparison, method, run

TITLES = tuple(f"T{index}" for index in range(40))
NUM_ROWS = 60


@pytest.fixture
def data(tmp_path: Path) -> CompareData:
    """``bigrec`` recommends T0 to T4 to everybody; ``sprec`` ranks every target first, in both seeds.

    No run has the folder ``evaluations/catalog``: one that took its evaluations from others has none.
    """
    targets = [TITLES[row % len(TITLES)] for row in range(NUM_ROWS)]
    answers = {
        "bigrec": [list(TITLES[:5])] * NUM_ROWS,
        "sprec": [[target, *(title for title in TITLES[:5] if title != target)][:5] for target in targets],
    }
    for name, ranked in answers.items():
        for seed in (0, 1):
            folder = tmp_path / f"{name}-{seed}"
            rows = [Example(example_id=str(row), history=("T1",), target=target) for row, target in enumerate(targets)]
            write_rows(folder / "data" / "test.jsonl", rows)
            write_rows(folder / "data" / "train.jsonl", rows)
            Catalog(TITLES, {title: ("A", "B")[index % 2 :][:1] for index, title in enumerate(TITLES)}).write(
                folder / "data" / "catalog.json"
            )
            label = "sft" if name == "bigrec" else "iteration-0"
            write_json(folder / "evaluations" / label / "grounded.json", ranked)
    runs = tuple(run(name, seed, MEANS[name], int(name == "sprec")) for name in answers for seed in (0, 1))
    runs = tuple(
        replace(each, results=tuple(replace(result, genre_gaps={"A": 0.0, "B": 0.0}) for result in each.results))
        for each in runs
    )
    made = (method("bigrec"), method("sprec"))
    return replace(comparison(), methods=made, runs=runs, significance=(), num_resamples=200)


def test_a_difference_in_every_row_is_significant(data: CompareData, tmp_path: Path) -> None:
    """Every target is a hit of sprec; bigrec hits T0 to T4 only: 10 of 60 rows."""
    found = {each.metric: each for each in bootstrap_differences(data, tmp_path) if each.method == "sprec"}
    assert found["hr@5"].difference == pytest.approx(1 - 10 / 60)
    assert found["hr@5"].p < 0.01
    assert found["hr@5"].low > 0.6
    assert found["div_ratio@1"].difference == pytest.approx(40 / 60 - 1 / 60)
    assert {each.rival for each in found.values()} == {"bigrec"}
    tested = replace(data, significance=tuple(found.values()), is_tested=True)
    assert marks(tested, "sprec", column_of("hr@5")) == "▲†"
    assert "sprec less bigrec" in significance_table(tested)
    assert "Not tested" not in significance_table(tested)
    turned = tuple(replace(each, method=each.rival, rival=each.method) for each in tested.significance)
    assert "Not tested" not in significance_table(replace(tested, significance=turned))


def test_runs_without_rankings_are_not_tested(data: CompareData, tmp_path: Path) -> None:
    for file in tmp_path.rglob("grounded.json"):
        file.unlink()
    assert bootstrap_differences(data, tmp_path) == ()
    assert significance_table(data) == ""  # of a page that is written before
    page = significance_table(replace(data, is_tested=True))
    assert page.count("Not tested") == page.count("sprec less bigrec") == 1


def test_candidates_and_pairs_are_tested_by_what_their_rows_add(
    data: CompareData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They rank no catalogue: ``grounded.json`` of candidates is not read. Of undefined rows nothing is counted."""
    added = {"bigrec": [0.0, 1.0] * 30, "sprec": [1.0] * 30 + [None] * 30}
    runs, folders = [], []
    for each in data.runs:
        metrics = {"auc": 0.5, "pair_accuracy": 0.5}
        results = tuple(replace(result, metrics=metrics) for result in each.results)
        runs.append(replace(each, results=results))
        folder = tmp_path / each.name / "evaluations" / results[-3].label
        adds = {"auc": added[each.method], "pair_accuracy": [0.5] * 60}
        write_json(folder / "rows.json", {"example_ids": list(map(str, range(60))), "adds": adds})
        (folder / "grounded.json").write_text("not read")
        folders.append(folder)
    pairs = replace(data, runs=tuple(runs))
    found = {each.metric: each for each in bootstrap_differences(pairs, tmp_path) if each.method == "sprec"}
    assert found["auc"].difference == pytest.approx(0.5)
    assert found["auc"].p < 0.01
    assert (found["pair_accuracy"].difference, found["pair_accuracy"].p) == (0.0, 1.0)
    assert marks(replace(pairs, significance=tuple(found.values())), "sprec", column_of("auc")) == "▲"
    for number, folder in enumerate(folders[:2]):  # both of bigrec: other rows, then none in one of two seeds
        write_json(folder / "rows.json", {"example_ids": ["x"] * 60, "adds": {"auc": [0.0] * 60}})
        if number:
            (folder / "rows.json").unlink()
        caplog.clear()
        assert bootstrap_differences(pairs, tmp_path) == ()
        assert ("other rows", "no rows.json of ['bigrec']")[number] in caplog.text


def test_methods_that_were_measured_on_other_rows_are_not_tested(
    data: CompareData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "sprec-1" / "data" / "test.jsonl"
    write_rows(file, [Example(example_id=str(row), history=("T1",), target="T2") for row in range(NUM_ROWS)])
    assert bootstrap_differences(data, tmp_path) == ()
    assert "sprec and bigrec were measured on other rows: their difference is not tested" in caplog.text


def test_only_seeds_that_both_have_are_compared(data: CompareData, tmp_path: Path) -> None:
    unfinished = tuple(replace(each, status="unfinished") if each.name == "bigrec-1" else each for each in data.runs)
    (tmp_path / "sprec-1" / "evaluations" / "iteration-0" / "grounded.json").write_text("not read")
    found = bootstrap_differences(replace(data, runs=unfinished), tmp_path)
    assert len(found) == 8
