"""The tables of a sweep's page: the chosen trial, all trials, what they cost, and the commands that repeat them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sprec_ray.reports.markup import escape, note, number, seconds, table, value_text
from sprec_ray.reports.svg.plots import Bar, timeline
from sprec_ray.reports.sweep.names import metric_columns, short_names, show, trial_labels
from sprec_ray.reports.sweep.results import SweepData, TrialRecord
from sprec_ray.reports.tables import Column, cell, column_of, hr_differs, places
from sprec_ray.storage.timeline import KINDS


def chosen_tiles(data: SweepData) -> str:
    """The chosen trial with its metric, its diversity and its cost; a sentence when there is none."""
    trial = next((trial for trial in data.trials if trial.name == data.chosen), None)
    if trial is None:
        return note("No trial has finished with a defined metric, so none is chosen.")
    tiles = [("chosen trial", trial_labels(data)[trial.name].split(" ", 1)[0], _settings(data, trial))]
    for column in dict.fromkeys((column_of(data.metric), column_of(data.diversity))):
        start = trial.policies[0].metrics.get(column.key, math.nan)
        change = f"after the first SFT {value_text(start)}; {column.meaning}"
        tiles.append((column.heading, value_text(trial.final(column.key)), change))
    tiles.append(("its time", seconds(trial.total_s), f"stages adopted from other trials: {len(trial.shared)}"))
    shown = "".join(
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b><span>{escape(more)}</span></div>'
        for name, value, more in tiles
    )
    best = "largest" if data.mode == "max" else "smallest"
    rule = (
        f"Chosen by the {best} {data.metric} of the last policy on the {data.split} rows among the trials that "
        f"finished; {data.diversity} decides between equal ones. "
    )
    return f'<div class="tiles">{shown}</div>' + note(rule + _close_sentence(data, trial))


def trials_table(data: SweepData) -> str:
    """Every trial: settings, state, metrics of its last policy, seconds."""
    shown, short = metric_columns(data, every=False), short_names(data.parameters)
    best = {column: _best(data, column) for column in shown}
    rows = []
    for index, trial in enumerate(data.trials, start=1):
        last = trial.policies[-1] if trial.policies else None
        values = []
        for column in shown:
            text = escape(cell(last, column)) if last else "–"
            is_best = trial.status == "finished" and trial.final(column.key) == best[column]
            values.append(f'<strong class="best">{text}</strong>' if is_best else text)
        name = f"#{index}" + (" <strong>chosen</strong>" if trial.name == data.chosen else "")
        settings = [escape(show(trial.parameters[key])) if key in trial.parameters else "–" for key in short]
        rows.append([name, *settings, _state(trial), f"{trial.total_s:.1f}", *values])
    headings = (escape(column.heading) for column in shown)
    headers = ["trial", *map(escape, short.values()), "state", "time, s", *headings]
    return table(headers, rows, css="dense") + note(
        "Metrics of each trial's last policy; the best of the finished trials in bold. ± is one standard error of HR. "
        "The arrow points to better. All values, of every iteration, are in sweep.csv."
    )


def cost_section(data: SweepData) -> str:
    """Seconds of every trial by kind, as bars and as a table, and what it took over from others."""
    if not data.trials:
        return ""
    labels = trial_labels(data)
    kinds = [kind for kind in KINDS if any(trial.seconds.get(kind) for trial in data.trials)]
    lanes = [(labels[trial.name], _stacked(trial, kinds)) for trial in data.trials]
    longest = max((bar.start_s + bar.duration_s for _, stack in lanes for bar in stack), default=0.0)
    legend = "".join(f'<span><i class="swatch {kind}"></i>{kind}</span>' for kind in kinds)
    bars = f'<div class="scroll"><div class="floor">{timeline(lanes, longest, left=250)}</div></div>'
    plot = f'<p class="legend">{legend}</p>{bars}' if longest else ""
    rows = [_cost_row(escape(labels[trial.name]), [trial], kinds) for trial in data.trials]
    if len(data.trials) > 1:
        rows.append(_cost_row("<strong>all trials</strong>", data.trials, kinds))
    headers = ["trial", "time, s", *(f"{kind}, s" for kind in kinds), "stages adopted", "computed elsewhere, s"]
    total = sum(trial.total_s for trial in data.trials)
    explanation = note(
        f"The sweep took {seconds(data.total_s)}, its trials together {seconds(total)}. Bars add up the seconds of a "
        "trial's stages by kind; stages that overlap make a bar longer than the trial's time. Adopted stages were "
        "computed once, by another trial, and are not in this trial's seconds."
    )
    return explanation + plot + table(headers, rows) + _adopted(data)


def commands(data: SweepData) -> str:
    """For every trial the command that repeats it alone."""
    labels = trial_labels(data)
    entries = "".join(
        f'<li><b>{escape(labels[trial.name])}</b> <span class="muted">{escape(trial.name)}</span>'
        f"<pre><code>{escape(trial.command)}</code></pre></li>"
        for trial in data.trials
        if trial.command
    )
    return f'<ol class="commands">{entries}</ol>' if entries else ""


def _settings(data: SweepData, trial: TrialRecord) -> str:
    return ", ".join(
        f"{word} = {show(trial.parameters[name])}"
        for name, word in short_names(data.parameters).items()
        if name in trial.parameters
    )


def _state(trial: TrialRecord) -> str:
    after = f" after {trial.policies[-1].label}" if trial.policies and trial.status != "finished" else ""
    return f'<span class="state {trial.status}">{escape(trial.status + after)}</span>'


def _best(data: SweepData, column: Column) -> float:
    """The best value among the finished trials; NaN, which equals nothing, when none differs."""
    values = [trial.final(column.key) for trial in data.trials if trial.status == "finished"]
    values = [value for value in values if not math.isnan(value)]
    if len(set(values)) < 2 or column.undirected:
        return math.nan
    return min(values) if column.lower_is_better else max(values)


def _close_sentence(data: SweepData, chosen: TrialRecord) -> str:
    """Which finished trials the standard error of HR cannot tell from the chosen one."""
    ks = places(chosen.policies)
    others = [trial for trial in data.trials if trial.status == "finished" and trial is not chosen and trial.policies]
    if not ks or not others:
        return ""
    judged = {
        trial.name: hr_differs(chosen.policies[-1], trial.policies[-1], ks[-1]) for trial in others if trial.policies
    }
    close = [trial_labels(data)[name].split(" ", 1)[0] for name, differs in judged.items() if differs is False]
    if not close:
        return ""
    same = "every other finished trial" if len(close) == len(others) else ", ".join(close)
    return f"Its HR@{ks[-1]} is within two standard errors of the difference of {same}: HR does not tell them apart."


def _stacked(trial: TrialRecord, kinds: Sequence[str]) -> list[Bar]:
    bars, start = [], 0.0
    for kind in kinds:
        spent = trial.seconds.get(kind, 0.0)
        if spent > 0:
            bars.append(Bar(css=kind, start_s=start, duration_s=spent, hint=f"{kind}: {spent:.1f} s"))
            start += spent
    return bars


def _cost_row(label: str, trials: Sequence[TrialRecord], kinds: Sequence[str]) -> list[str]:
    spent = [sum(trial.seconds.get(kind, 0.0) for trial in trials) for kind in kinds]
    known = [trial.shared_s for trial in trials if trial.shared_s is not None]
    return [
        label,
        f"{sum(trial.total_s for trial in trials):.1f}",
        *(f"{value:.1f}" for value in spent),
        str(sum(len(trial.shared) for trial in trials)),
        number(sum(known) if known else None, 1),
    ]


def _adopted(data: SweepData) -> str:
    """Which stages each trial adopted, folded away."""
    labels = trial_labels(data)
    rows = [[escape(labels[trial.name]), escape(", ".join(trial.shared))] for trial in data.trials if trial.shared]
    shown = table(["trial", "adopted stages"], rows, css="text")
    return f"<details><summary>Adopted stages</summary>{shown}</details>" if rows else ""
