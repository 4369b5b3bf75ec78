"""The report of a comparison: compare.html, and the same numbers as compare.md, compare.csv and compare.json."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from sprec_ray.reports.compare.beside_published import published_section
from sprec_ray.reports.compare.costs import cost_section, total_sentence
from sprec_ray.reports.compare.differences import significance_table
from sprec_ray.reports.compare.plots import genre_map, iteration_section, study_section
from sprec_ray.reports.compare.results import CompareData, write_comparison
from sprec_ray.reports.compare.sentences import agreement_sentences, compare_warnings
from sprec_ray.reports.compare.settings import commands_section, switches_section
from sprec_ray.reports.compare.tables import (
    comparison_rows,
    legend_sentences,
    markdown_table,
    methods_table,
    more_columns,
    table_columns,
    table_legend,
)
from sprec_ray.reports.csv_file import write_csv
from sprec_ray.reports.markup import header, page, seconds, section, warnings
from sprec_ray.reports.style import COMPARE_STYLE
from sprec_ray.storage.artifacts import write_text

PAGE_FILE, CSV_FILE, MARKDOWN_FILE = "compare.html", "compare.csv", "compare.md"

STUDY_TITLES = {
    "random_ratio": "Share of random negatives (Fig. 5)",
    "num_negatives": "Number of negatives (Fig. 6)",
}


def write_compare_report(folder: Path, data: CompareData) -> None:
    """Write compare.json, compare.csv, compare.md and compare.html into the comparison's folder, each whole or not.

    It may be called again as often as the comparison comes further.
    """
    write_comparison(folder, data)
    write_csv(folder / CSV_FILE, comparison_rows(data))
    write_text(folder / MARKDOWN_FILE, render_markdown(data))
    write_text(folder / PAGE_FILE, render_comparison(data))


def render_comparison(data: CompareData) -> str:
    """The page as HTML that is also well-formed XML. All text that comes from data is escaped."""
    shown, more = table_columns(data), more_columns(data)
    all_metrics = ""
    if more:
        all_metrics = f"<details><summary>All other metrics</summary>{methods_table(data, more)}</details>"
    body = "".join(
        [
            _header(data),
            warnings(compare_warnings(data)),
            section("results", "Methods", methods_table(data, shown) + table_legend(data) + all_metrics),
            section("significance", "What other rows would change", significance_table(data)),
            section("published", "Beside the published numbers", published_section(data)),
            section("genres", "Unfairness by genre", genre_map(data)),
            section("iterations", "Over the iterations", iteration_section(data)),
            *(section(study, title, study_section(data, study)) for study, title in STUDY_TITLES.items()),
            section("cost", "Cost", cost_section(data)),
            section("switches", "What makes each method", switches_section(data)),
            section("commands", "Repeat one run alone", commands_section(data)),
        ]
    )
    return page(f"{data.name}: comparison", COMPARE_STYLE, body)


def render_markdown(data: CompareData) -> str:
    """The tables and the sentences as Markdown, to paste elsewhere."""
    more = more_columns(data)
    parts = [f"# {data.name}", f"```\n{data.command}\n```", markdown_table(data, table_columns(data))]
    parts += [" ".join(legend_sentences(data))]
    parts += ["\n".join(f"- {sentence}" for sentence in compare_warnings(data))]
    parts += ["## All other metrics", markdown_table(data, more)] if more else []
    agreement = agreement_sentences(data)
    parts += ["## Beside the published numbers", "\n".join(f"- {line}" for line in agreement)] if agreement else []
    parts += ["## Cost", total_sentence(data)]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def _header(data: CompareData) -> str:
    states = Counter(run.status for run in data.runs)
    facts = [
        ("started", data.started),
        ("took", seconds(data.total_s) if data.total_s else ""),
        ("dataset", data.dataset),
        ("methods", f"{len(data.table_methods)}"),
        ("seeds", ", ".join(map(str, data.seeds))),
        ("runs", f"{len(data.runs)}: " + ", ".join(f"{count} {state}" for state, count in states.items())),
        ("measured on", f"{data.split} rows"),
    ]
    return header(f"{data.name}: comparison", data.command, facts)
