"""The report of a run: one self-contained HTML page, no scripts, nothing fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sprec_ray.reports.markup import escape, header, mapping_table, note, page, seconds, section, table, warnings
from sprec_ray.reports.paper import paper_notes
from sprec_ray.reports.run.curves import fallen_phases, training_plots
from sprec_ray.reports.run.sections import (
    dropped_tables,
    genre_section,
    metric_plots,
    summary_tiles,
    timeline_section,
    top_items_section,
)
from sprec_ray.reports.style import STYLE
from sprec_ray.reports.tables import more_table, results_table
from sprec_ray.storage.artifacts import write_text
from sprec_ray.storage.timeline import Span
from sprec_ray.types import EvalResult

MIN_VALID = 0.9
MAX_EQUAL = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """What a report shows; everything but ``title`` may be left out, and its section with it."""

    title: str
    command: str = ""
    started: str = ""
    """When the run started, for people."""
    seed: int | None = None
    total_s: float = 0.0
    engines: Mapping[str, str] = field(default_factory=dict)
    """What ran, by role: ``{"decoding": "vllm", "training": "deepspeed, ZeRO 0"}``."""
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, str] = field(default_factory=dict)
    results: tuple[EvalResult, ...] = ()
    """Policies in order (base, sft, iteration-0 ...); other labels are baselines."""
    training: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    """Per phase one mapping a step, with the keys of ``training/losses.py`` and ``loss``."""
    timeline: tuple[Span, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Data rows that were left out, by reason."""
    counters: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Per iteration what happened to its negatives, with the keys of ``selfplay/negatives.py``."""
    warnings: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    """The resolved configuration under dotted keys."""
    differences: Sequence[tuple[str, Any, Any]] = ()
    """(key, ours, the paper's), from ``paper.differences_from_paper``."""


def write_report(path: Path, run: ReportData) -> None:
    """Write the page of a run, whole or not at all."""
    write_text(path, render_report(run))


def render_report(run: ReportData) -> str:
    """The page of a run as HTML that is also well-formed XML. All text that comes from data is escaped."""
    body = "".join(
        [
            _header(run),
            warnings(derive_warnings(run)),
            section("results", "Results", summary_tiles(run.results), _results(run)),
            section("stages", "Metrics over the stages", metric_plots(run.results)),
            section("items", "Most recommended", top_items_section(run.results)),
            section("genres", "Fairness by genre", genre_section(run.results)),
            section("training", "Training", training_plots(run.training)),
            section("dropped", "What was left out", dropped_tables(run.dropped, run.counters)),
            section("time", "Where the time went", timeline_section(run.timeline, run.total_s)),
            section("paper", "Differences from the paper", _differences(run)),
            section("config", "Configuration and versions", _configuration(run)),
        ]
    )
    return page(run.title, STYLE, body)


def derive_warnings(run: ReportData) -> list[str]:
    """The warnings of the caller, then what the numbers themselves say: a run that turned bad."""
    found = list(run.warnings)
    for result in run.results:
        if result.label != "base" and result.metrics.get("valid", 1.0) < MIN_VALID:
            found.append(
                f"{result.label}: {100 * result.metrics['valid']:.1f} % of the responses are quoted catalogue titles "
                f"(below {100 * MIN_VALID:.0f} %); the rest were grounded to the nearest title."
            )
    for label, counts in run.counters.items():
        examples, equal = counts.get("examples", 0), counts.get("top_equal_to_target", 0)
        if examples and equal / examples > MAX_EQUAL:
            found.append(
                f"{label}: {equal} of {examples} first answers equal the target "
                f"(above {100 * MAX_EQUAL:.0f} %); the policy has little left to prefer."
            )
    beta = run.config.get("preference.beta")
    fallen = fallen_phases(run.training, beta=float(beta) if isinstance(beta, (int, float)) else None)
    phases = ", ".join(f"{phase} by {nats:.1f} nats" for phase, nats in fallen)
    if phases:
        found.append(
            f"The log-probability of the chosen titles fell: {phases}. The loss only asks that they fall less than the "
            "rejected ones; a higher preference.beta or a lower preference.learning_rate holds them."
        )
    return list(dict.fromkeys(found))


def _header(run: ReportData) -> str:
    facts = [
        ("started", run.started),
        ("took", seconds(run.total_s) if run.total_s else ""),
        ("seed", "" if run.seed is None else run.seed),
        *run.engines.items(),
        *run.hardware.items(),
    ]
    return header(run.title, run.command, facts)


def _results(run: ReportData) -> str:
    return results_table(run.results) + more_table(run.results) if run.results else ""


def _differences(run: ReportData) -> str:
    if not run.config and not run.differences:
        return ""
    rows = [[f"<code>{escape(key)}</code>", escape(ours), escape(paper)] for key, ours, paper in run.differences]
    found = table(["key", "this run", "paper"], rows, css="text") if rows else note("No setting differs.")
    return found + "".join(note(text) for text in paper_notes(run.config))


def _configuration(run: ReportData) -> str:
    parts = [
        ("Resolved configuration", mapping_table(("key", "value"), run.config.items(), css="text")),
        ("Versions", mapping_table(("package", "version"), run.versions.items(), css="text")),
    ]
    return "".join(f"<details><summary>{name}</summary>{content}</details>" for name, content in parts if content)
