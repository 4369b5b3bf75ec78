"""What makes each method of a comparison: its switches, the published code's, and the commands that repeat its runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sprec_ray.reports.compare.results import CompareData, MethodRecord
from sprec_ray.reports.markup import escape, mapping_table, note, table


def switches_section(data: CompareData) -> str:
    """Per method the settings that differ from the dataset's file; the published variants; SPRec's own settings."""
    rows = [
        [escape(method.label), escape(method.variant), escape(method.about), _settings(method.settings)]
        for method in data.methods
    ]
    switches = note(f"The settings in which each method differs from {data.dataset} (there → here).") + table(
        ["method", "variant", "what it is", "settings"], rows, css="text wrap"
    )
    variants = [
        [escape(method.name), escape(method.variant), _settings(method.variant_settings)]
        for method in _first_of_each(data)
        if method.variant_settings
    ]
    published = (
        "<h3>Paper and published code</h3>"
        + note("Where the published code departs from its paper (paper → reference); which of both ran here.")
        + table(["method", "ran", "settings"], variants, css="text wrap")
        if variants
        else ""
    )
    paper = table(
        ["setting", "here", "the paper"],
        [[escape(key), escape(ours), escape(theirs)] for key, ours, theirs in data.from_paper],
        css="text",
    )
    from_paper = (
        f"<details><summary>Where {escape(data.dataset)} differs from the paper's settings ({len(data.from_paper)})"
        f"</summary>{paper}</details>"
        if data.from_paper
        else ""
    )
    versions = mapping_table(("package", "version"), data.versions.items(), css="text")
    return switches + published + from_paper + f"<details><summary>Versions</summary>{versions}</details>"


def commands_section(data: CompareData) -> str:
    """For every run the command that repeats it alone."""
    entries = "".join(
        f'<li><b>{escape(run.method)}, seed {run.seed}</b> <span class="muted">{escape(run.status)}</span>'
        f"<pre><code>{escape(run.command)}</code></pre></li>"
        for run in data.runs
    )
    listed = f'<ol class="commands">{entries}</ol>'
    return f"<details><summary>{len(data.runs)} commands</summary>{listed}</details>" if entries else ""


def _settings(values: Mapping[str, tuple[Any, Any]]) -> str:
    if not values:
        return '<span class="muted">none</span>'
    return "<br/>".join(f"{escape(key)}: {escape(before)} → {escape(now)}" for key, (before, now) in values.items())


def _first_of_each(data: CompareData) -> list[MethodRecord]:
    return list({method.name: method for method in reversed(data.methods)}.values())[::-1]
