"""The report of a sweep: sweep.html, one self-contained page, with the same numbers as sweep.json and sweep.csv."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from sprec_ray.reports.csv_file import write_csv
from sprec_ray.reports.markup import header, mapping_table, page, seconds, section, warnings
from sprec_ray.reports.style import SWEEP_STYLE
from sprec_ray.reports.sweep.names import show, trial_labels
from sprec_ray.reports.sweep.plots import is_grid, iteration_curves, metric_maps, pareto_plot
from sprec_ray.reports.sweep.results import SweepData, SweepParameter, write_sweep
from sprec_ray.reports.sweep.rows import sweep_rows
from sprec_ray.reports.sweep.scatters import metric_scatters
from sprec_ray.reports.sweep.tables import chosen_tiles, commands, cost_section, trials_table
from sprec_ray.reports.tables import column_of
from sprec_ray.storage.artifacts import write_text

REPORT_FILE, CSV_FILE = "sweep.html", "sweep.csv"


def write_sweep_report(folder: Path, data: SweepData) -> None:
    """Write sweep.json, sweep.csv and sweep.html into the sweep's folder, each whole or not at all.

    It may be called again as often as the sweep comes further.
    """
    write_sweep(folder, data)
    write_csv(folder / CSV_FILE, sweep_rows(data))
    write_text(folder / REPORT_FILE, render_sweep(data))


def render_sweep(data: SweepData) -> str:
    """The page of a sweep as HTML that is also well-formed XML. All text that comes from data is escaped."""
    over_settings = metric_maps(data) if is_grid(data) else metric_scatters(data)
    accuracy, diversity = column_of(data.metric).heading, column_of(data.diversity).heading
    body = "".join(
        [
            _header(data),
            warnings(sweep_warnings(data)),
            section("chosen", "Chosen trial", chosen_tiles(data)),
            section("trials", "All trials", trials_table(data) if data.trials else ""),
            section("pareto", f"Accuracy against diversity: {accuracy} and {diversity}", pareto_plot(data)),
            section("metrics", "Every metric over the settings", over_settings),
            section("iterations", "Over the iterations", iteration_curves(data)),
            section("cost", "What each trial cost", cost_section(data)),
            section("commands", "Repeat one trial alone", commands(data)),
            section("space", "Settings searched, and versions", _space(data)),
        ]
    )
    return page(f"{data.name}: sweep", SWEEP_STYLE, body)


def sweep_warnings(data: SweepData) -> list[str]:
    """What a reader must know before the numbers: failed trials with their errors, and a choice made on test rows."""
    labels = trial_labels(data)
    found = [
        f"{labels[trial.name]} failed: {trial.error or 'no message was kept'}"
        for trial in data.trials
        if trial.status == "failed"
    ]
    unfinished = [labels[trial.name].split(" ", 1)[0] for trial in data.trials if trial.status == "unfinished"]
    if unfinished:
        found.append(f"Not finished: {', '.join(unfinished)}. The command above continues the sweep.")
    if data.split == "test":
        found.append(
            "The trials were compared on the test rows, so the chosen trial's figures are too good: choosing among "
            "many finds luck too. Take split: valid to choose, and measure the chosen trial on the test rows after."
        )
    return found


def _header(data: SweepData) -> str:
    states = Counter(trial.status for trial in data.trials)
    facts = [
        ("started", data.started),
        ("took", seconds(data.total_s) if data.total_s else ""),
        ("trials", f"{len(data.trials)}: " + ", ".join(f"{count} {state}" for state, count in states.items())),
        ("chosen by", f"{data.metric} ({data.mode}), then {data.diversity}"),
        ("measured on", f"{data.split} rows"),
    ]
    return header(f"{data.name}: sweep", data.command, facts)


def _space(data: SweepData) -> str:
    searched = mapping_table(
        ("setting", "values"), ((parameter.name, _values(parameter)) for parameter in data.parameters), css="text"
    )
    versions = mapping_table(("package", "version"), data.versions.items(), css="text")
    return searched + (f"<details><summary>Versions</summary>{versions}</details>" if versions else "")


def _values(parameter: SweepParameter) -> str:
    if parameter.values:
        return ", ".join(show(value) for value in parameter.values)
    scale = ", logarithmic" if parameter.log else ""
    return f"{show(parameter.low)} to {show(parameter.high)}{scale}"
