"""The comparison's tables say what the runs measured, and mark it right."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path

import pytest

from sprec_ray.reports.compare.beside_published import published_section
from sprec_ray.reports.compare.costs import total_sentence, unit_cost
from sprec_ray.reports.compare.published import NAMES, PUBLISHED, kendall_tau, published_table
from sprec_ray.reports.compare.results import Cost, RunRecord, read_comparison, spread, write_comparison
from sprec_ray.reports.compare.sentences import (
    agreeing_signs,
    agreement_sentences,
    differences,
    grounding_sentences,
    ordering,
    simple_sentences,
)
from sprec_ray.reports.compare.tables import (
    best_two,
    comparison_rows,
    markdown_table,
    marks,
    methods_table,
    more_columns,
    places_of,
    ranked_methods,
    table_columns,
)
from sprec_ray.reports.tables import column_of
from sprec_ray.types import EvalResult
from tests.reports.compare.made_comparison import MEANS, comparison, method, run


def test_a_cell_is_the_mean_and_the_sample_deviation_over_seeds() -> None:
    """Two seeds of .031 and .032: mean .0315, deviation .001 / sqrt(2) = .0007."""
    data = comparison()
    mean, deviation = spread(data.values("bigrec", "hr@5"))
    assert (mean, deviation) == (pytest.approx(0.0315), pytest.approx(0.001 / math.sqrt(2)))
    assert "| 0.0315 ± 0.0007 |" in markdown_table(data, [column_of("hr@5")])
    assert math.isnan(spread([0.1])[1])
    assert all(math.isnan(value) for value in spread([]))


def test_the_table_starts_with_the_columns_of_the_paper() -> None:
    data = comparison()
    assert [column.title for column in table_columns(data)] == [
        *("DivRatio@1", "DivRatio@5", "ORRatio@1", "ORRatio@5", "MGU@1", "MGU@5", "HR@5", "NDCG@5"),
    ]
    assert [column.key for column in more_columns(data)] == ["valid"]


def test_best_and_second_best_go_by_the_direction_and_among_language_models() -> None:
    """Popularity has the worst diversity and random titles the best: neither competes."""
    data = comparison()
    assert [each.label for each in ranked_methods(data)] == ["bigrec", "s_dpo", "sprec"]
    assert best_two(data, column_of("div_ratio@1")) == ("sprec", "s_dpo")
    assert best_two(data, column_of("or_ratio@1")) == ("sprec", "bigrec")
    assert best_two(data, column_of("ndcg@5")) == ("s_dpo", "sprec")
    html = methods_table(data, [column_of("ndcg@5")])
    assert '<strong class="best">0.0320</strong>' in html
    assert '<span class="second">0.0255</span>' in html
    same = replace(data, runs=tuple(run(name, 0, MEANS["bigrec"]) for name in ("bigrec", "s_dpo", "sprec")))
    assert best_two(same, column_of("ndcg@5")) == (None, None)
    assert places_of(same, column_of("ndcg@5")) == {}


def test_methods_that_share_a_place_are_all_marked() -> None:
    for third, wanted in (
        ("bigrec", {"sprec": 1, "bigrec": 2, "s_dpo": 2}),
        ("sprec", {"sprec": 1, "s_dpo": 1, "bigrec": 2}),
    ):
        values = {"bigrec": MEANS["bigrec"], "s_dpo": MEANS[third], "sprec": MEANS["sprec"]}
        data = replace(comparison(), runs=tuple(run(name, 0, values[name]) for name in values))
        assert places_of(data, column_of("div_ratio@1")) == wanted
        best, second = (sum(mark == place for mark in wanted.values()) for place in (1, 2))
        table = markdown_table(data, [column_of("div_ratio@1")])
        assert (table.count("**") // 2, table.count("<u>")) == (best, second)


def test_means_that_are_equal_but_for_rounding_are_equal() -> None:
    """All three hit 213 of 3,000 rows; the sums of their floating point numbers differ in the last place."""
    hits = {"bigrec": (70, 72, 71), "s_dpo": (71, 71, 71), "sprec": (72, 71, 70)}
    sums = {reduce(add, (hit / 1000 for hit in values)) / 3 for values in hits.values()}  # sum() rounds less from 3.12
    assert len(sums) > 1
    runs = [
        replace(each, results=tuple(replace(result, metrics={"hr@5": hit / 1000}) for result in each.results))
        for name, values in hits.items()
        for seed, hit in enumerate(values)
        for each in (run(name, seed, MEANS[name]),)
    ]
    data = replace(comparison(), seeds=(0, 1, 2), runs=tuple(runs), significance=())
    assert places_of(data, column_of("hr@5")) == {}
    assert {ours for _, ours, _ in differences(data, "hr@5")} == {0.0}
    assert agreeing_signs(data, "hr@5") == (0, 0)
    assert ordering(data, "hr@5") == 0
    assert not {"✓", "✗"} & set(published_section(data).partition("</table>")[0])


def test_a_method_that_grounds_differently_is_named() -> None:
    data = comparison()
    assert not list(grounding_sentences(data))
    own = replace(data.methods[-1], settings={"evaluation.grounding": ("sentence", "search")})
    assert list(grounding_sentences(replace(data, methods=(*data.methods[:-1], own)))) == [
        "sprec has evaluation.grounding=search, the methods without a setting of their own sentence: what they differ "
        "in is the grounding's too."
    ]


def test_marks_tell_better_from_worse_and_luck_from_neither() -> None:
    data = comparison()
    assert marks(data, "sprec", column_of("div_ratio@1")) == "▲"
    assert marks(data, "sprec", column_of("or_ratio@1")) == "▲†"  # less over-recommendation is better
    assert marks(data, "sprec", column_of("ndcg@5")) == ""
    assert marks(data, "s_dpo", column_of("ndcg@5")) == "†"
    worse = replace(data.significance[0], difference=-0.067)
    assert marks(replace(data, significance=(worse,)), "sprec", column_of("div_ratio@1")) == "▼"


def test_seeds_that_are_missing_are_said() -> None:
    assert "s_dpo (1 of 2 seeds)" in markdown_table(comparison(), [column_of("hr@5")])


def test_rows_for_other_programs_hold_every_policy() -> None:
    rows = comparison_rows(comparison())
    assert len({tuple(row) for row in rows}) == 1
    sprec = [row for row in rows if row["method"] == "sprec" and row["seed"] == 0]
    assert [row["policy"] for row in sprec] == [
        "sft",
        "iteration-0",
        "iteration-1",
        "iteration-2",
        "popularity",
        "random",
    ]
    assert [row["is_last"] for row in sprec] == [False, False, False, True, False, False]
    [failed] = [row for row in rows if row["status"] == "failed"]
    assert (failed["policy"], failed["error"]) == (None, "ValueError: <b>no</b> genres")


def test_what_does_not_beat_a_simple_rule_is_named() -> None:
    """SASRec's .0125 is below popularity's .0140 (.0145 as a method with two seeds)."""
    found = list(simple_sentences(comparison()))
    assert len(found) == 1
    assert found[0].startswith(
        "sasrec does not beat popularity: NDCG@5 0.0125 against 0.0145. On these rows going by how"
    )


def test_rules_that_are_not_beaten_are_one_sentence_best_first() -> None:
    """Pairs are judged by pairwise accuracy; a method that beats all rules is not named."""
    ranked = {"bigrec": 0.52, "s_dpo": 0.58, "sprec": 0.49}
    rules = {"popularity": 0.51, "liked share": 0.53}
    runs = tuple(
        RunRecord(
            name=f"{name}-0",
            method=name,
            seed=0,
            status="finished",
            results=tuple(
                EvalResult(label=label, metrics={"pair_accuracy": value}, counts={})
                for label, value in {"sft": mean, **rules}.items()
            ),
        )
        for name, mean in ranked.items()
    )
    data = replace(comparison(), methods=tuple(map(method, ranked)), runs=runs, seeds=(0,))
    found = list(simple_sentences(data))
    assert [sentence.split(". On")[0] for sentence in found] == [
        "bigrec does not beat liked share: pairwise accuracy 0.5200 against 0.5300",
        "sprec does not beat liked share, popularity: pairwise accuracy 0.4900 against 0.5300, 0.5100",
    ]
    assert "the share of a title's training judges who like it is at least as accurate" in found[1]


def test_published_numbers_are_those_of_the_paper() -> None:
    """Spot checks against the paper's text, and the abstract of its claim: SPRec's DivRatio@1 beats BIGRec's."""
    movies = published_table("movielens").numbers
    assert (movies["bigrec"]["div_ratio@1"], movies["bigrec"]["or_ratio@1"], movies["bigrec"]["ndcg@5"]) == (
        0.1939,
        0.2561,
        0.0281,
    )
    assert (movies["sprec"]["div_ratio@1"], movies["sprec"]["or_ratio@1"], movies["sprec"]["ndcg@5"]) == (
        0.2806,
        0.1510,
        0.0319,
    )
    for dataset in ("movielens", "goodreads", "cds", "steam"):
        table = published_table(dataset).numbers
        assert len(table) == 11
        assert table["sprec"]["div_ratio@1"] > table["bigrec"]["div_ratio@1"]
    assert math.isnan(published_table("cds").numbers["rosepo"]["div_ratio@5"])
    assert published_table("dmpo-ml-1m").numbers["dmpo"]["auc"] == pytest.approx(0.7020)
    assert published_table("dmpo-amazon-movie").numbers["tallrec"]["auc"] == pytest.approx(0.5762)
    assert all(table.numbers.keys() <= NAMES.keys() for table in map(published_table, PUBLISHED))
    assert all(table.baseline in table.numbers for table in map(published_table, PUBLISHED))


def test_kendalls_tau_by_hand() -> None:
    """Of (1,2) (1,3) (2,3) two are ordered alike and one otherwise: (2 - 1) / 3."""
    assert kendall_tau([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == -1
    assert kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / 3)
    assert math.isnan(kendall_tau([1], [1]))


def test_agreement_with_the_paper_is_by_sign_and_order() -> None:
    """The made means are the published ones but for the seeds' shift, so every difference has the published sign."""
    data = comparison()
    assert [name for name, _, _ in differences(data, "ndcg@5")] == ["sasrec", "s_dpo", "sprec"]
    assert agreeing_signs(data, "div_ratio@1") == (3, 3)
    assert ordering(data, "div_ratio@1") == 1.0
    assert agreement_sentences(data)[0] == (
        "DivRatio@1: 3 of 3 methods differ from bigrec in the published direction, Kendall's tau +1.00."
    )
    assert agreement_sentences(replace(data, published=None)) == []


def test_cost_is_measured_in_runs_of_sprec() -> None:
    """Of five methods a run spends 100 s, so 500 / 400 = 1.2 times; alone 4 x 200 + 400: 1200 / 400 = 3.0."""
    data = comparison()
    assert unit_cost(data) == 400.0
    assert total_sentence(data) == (
        "The comparison took 1 h 00 min. With one seed the 5 methods that have finished cost 1.2 times one run of "
        "sprec; had nothing been shared, 3.0 times."
    )
    earlier = replace(data, outside=Cost(cpu_s=800.0))
    assert "cost, with what was taken from earlier runs, 2.2 times" in total_sentence(earlier)
    unknown = replace(
        data, runs=tuple(replace(each, alone=None) if each.method == "bigrec" else each for each in data.runs)
    )
    assert total_sentence(unknown).endswith("cost 1.2 times one run of sprec.")
    assert Cost(cpu_s=1, trained_tokens=2) + Cost(cpu_s=2, decoded_tokens=3) == Cost(
        cpu_s=3, trained_tokens=2, decoded_tokens=3
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    data = comparison()
    write_comparison(tmp_path, data)
    assert read_comparison(tmp_path) == data


def test_a_study_is_not_in_the_tables() -> None:
    point = method("sprec_n num_negatives=2", study="num_negatives", value=2.0)
    data = comparison()
    more = replace(data, methods=(*data.methods, point), runs=(*data.runs, run(point.label, 0, MEANS["sprec"], 3)))
    assert markdown_table(more, table_columns(more)) == markdown_table(data, table_columns(data))


def test_a_choice_among_candidates_is_shown_by_its_own_figures() -> None:
    """HR and NDCG of the candidates are of Table 1 too, and would hide HitRatio and ValidRatio."""
    metrics = {"hit_ratio@1": 0.1, "valid_ratio": 0.9, "hr@1": 0.2, "hr@5": 0.4, "ndcg@5": 0.3}
    data = comparison()
    runs = [
        replace(each, results=tuple(replace(result, metrics=metrics) for result in each.results)) for each in data.runs
    ]
    shown = [column.key for column in table_columns(replace(data, runs=tuple(runs)))]
    assert shown[:3] == ["hit_ratio@1", "hit_ratio_valid@1", "valid_ratio"]
