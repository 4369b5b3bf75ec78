"""The page of a comparison: everything in its place, well-formed, and nothing of the data taken for markup."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

from sprec_ray.reports.compare.page import render_comparison, render_markdown, write_compare_report
from sprec_ray.reports.compare.results import CompareData
from tests.reports.compare.made_comparison import MEANS, comparison, method, run


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="([^"]*)"', page)


def with_study(data: CompareData) -> CompareData:
    points = [method(f"sprec_n num_negatives={n}", study="num_negatives", value=float(n)) for n in (1, 2, 4)]
    runs = [run(point.label, seed, MEANS["sprec"], 2) for point in points for seed in (0, 1)]
    return replace(data, methods=(*data.methods, *points), runs=(*data.runs, *runs))


def test_the_page_is_well_formed_and_escapes_what_comes_from_data() -> None:
    page = render_comparison(with_study(comparison()))
    ElementTree.fromstring(page.partition("\n")[2])
    assert "compare-&lt;goodreads&gt;" in page
    assert "&lt;b&gt;no&lt;/b&gt; genres" in page
    assert "&lt;Fantasy &amp;" in page
    assert "<b>no</b>" not in page


def test_the_page_has_every_part() -> None:
    assert sections(render_comparison(with_study(comparison()))) == [
        *(
            "results",
            "significance",
            "published",
            "genres",
            "iterations",
            "num_negatives",
            "cost",
            "switches",
            "commands",
        ),
    ]
    page = render_comparison(with_study(comparison()))
    assert "s_dpo-1 failed: ValueError" in page
    assert "sasrec does not beat popularity" in page
    assert "bigrec keeps selfplay.num_iterations=0" in page
    assert "scratch instead of meta-llama/Llama-3.2-1B-Instruct" in page
    assert "(here 2: runs have no more)" in page
    assert "preference.reference: pre_sft → post_sft" in page


def test_parts_without_anything_to_say_are_left_out() -> None:
    runs = tuple(run("bigrec", 0, MEANS["bigrec"]) for _ in range(1))
    alone = replace(comparison(), methods=(method("bigrec"),), runs=runs, seeds=(0,), significance=(), published=None)
    page = render_comparison(alone)
    assert sections(page) == ["results", "genres", "cost", "switches", "commands"]
    assert "One seed, so there is no spread over seeds." in page


def test_a_comparison_that_has_just_begun_is_a_page() -> None:
    begun = replace(
        comparison(), runs=tuple(replace(r, status="unfinished", error="", results=()) for r in comparison().runs)
    )
    page = render_comparison(replace(begun, significance=()))
    ElementTree.fromstring(page.partition("\n")[2])
    assert "The command above continues the comparison." in page
    assert render_markdown(begun).startswith("# compare-<goodreads>\n")


def test_all_files_are_written(tmp_path: Path) -> None:
    write_compare_report(tmp_path, comparison())
    assert {file.name for file in tmp_path.iterdir()} == {"compare.html", "compare.csv", "compare.md", "compare.json"}
    assert "| method | DivRatio@1 ↑ |" in (tmp_path / "compare.md").read_text()
    assert (
        (tmp_path / "compare.csv").read_text().startswith("method,study,value,seed,status,policy,is_last,div_ratio@1")
    )
