"""The sections of the report that show results: tiles, plots over the stages, items, genres, counts and time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sprec_ray.reports.markup import escape, mapping_table, note, number, seconds, table, title_text
from sprec_ray.reports.svg.plots import Axes, Bar, Series, line_plot, paired_bars, timeline
from sprec_ray.reports.tables import DISPLAY_NAMES, LOWER_IS_BETTER, MORE, column_of, hr_differs, is_policy, places
from sprec_ray.storage.timeline import KINDS, Span
from sprec_ray.types import EvalResult


def before_after(results: Sequence[EvalResult]) -> tuple[EvalResult, EvalResult] | None:
    """The policy after the first SFT and the last policy of the run; None without two trained policies."""
    trained = [result for result in results if is_policy(result) and result.label != "base"]
    before = next((result for result in trained if result.label == "sft"), trained[0] if trained else None)
    return (before, trained[-1]) if before is not None and trained[-1] is not before else None


def summary_tiles(results: Sequence[EvalResult]) -> str:
    """The four figures a reader wants first, before and after self-play."""
    pair = before_after(results)
    if pair is None:
        return ""
    before, after = pair
    ks = places(results) or [0]
    tiles = []
    for name, k in (("div_ratio", ks[0]), ("or_ratio", ks[0]), ("mgu", ks[0]), ("hr", ks[-1])):
        old, new = (result.metrics.get(f"{name}@{k}") for result in pair)
        if old is None or new is None:
            continue
        tiles.append(
            f'<div class="tile"><span>{DISPLAY_NAMES[name]}@{k}</span>'
            f"<b>{number(old)} <i>→</i> {number(new)}</b><span>{_verdict(name, k, before, after)}</span></div>"
        )
    caption = note(f"From {before.label} to {after.label}.")
    return f'<div class="tiles">{"".join(tiles)}</div>{caption}' if tiles else ""


def metric_plots(results: Sequence[EvalResult]) -> str:
    """A small plot per metric: a line per k, stages along the x axis, baselines dashed at the largest k."""
    policies = [result for result in results if is_policy(result)]
    baselines = [result for result in results if not is_policy(result)]
    if not policies:
        return ""
    ks = places(policies)
    x_ticks = [(float(index), result.label.removeprefix("iteration-")) for index, result in enumerate(policies)]
    plots: dict[bool, list[str]] = {False: [], True: []}
    for name in DISPLAY_NAMES:
        plain = any(name in result.metrics for result in policies)
        keys = [(name, name, 0)] if plain else [(f"@{k}", f"{name}@{k}", k) for k in ks]
        series = [_stage_series(line, key, k, policies) for line, key, k in keys]
        references = [
            (result.label, result.metrics[keys[-1][1]])
            for result in baselines
            if keys and math.isfinite(result.metrics.get(keys[-1][1], math.nan))
        ]
        axes = Axes(x_ticks=x_ticks, references=references)
        plots[name in MORE].append(line_plot(column_of(name).heading, series, axes))
    explanation = note(
        "Numbers on the x axis are iterations; the arrow points to better; bars are one standard error."
        + (f" Dashed: baselines at k = {ks[-1]}." if baselines and ks else "")
    )
    shown, folded = (f'<div class="plots">{"".join(group)}</div>' if any(group) else "" for group in plots.values())
    more = f"<details><summary>More on diversity and popularity</summary>{folded}</details>" if folded else ""
    return explanation + shown + more


def top_items_section(results: Sequence[EvalResult]) -> str:
    """The most recommended titles at k = 1 before and after, with their shares of the test rows."""
    pair = before_after(results) or tuple(result for result in results if is_policy(result))[-1:]
    lists = []
    most = max((count for result in pair for _, count in result.top_items), default=0)
    for index, result in enumerate(pair):
        if not result.top_items:
            continue
        css = "before" if len(pair) == 2 and index == 0 else "after"
        num_rows = result.counts.get("num_rows", 0)
        entries = "".join(
            f'<li><span>{title_text(title)}</span><span class="count">{count}{_share(count, num_rows)}</span>'
            f'<span class="track"><i style="width:{100 * count / most:.1f}%"></i></span></li>'
            for title, count in result.top_items
        )
        lists.append(f'<div><h3>{escape(result.label)}</h3><ol class="items {css}">{entries}</ol></div>')
    explanation = note("How many test rows were given each title in the first place, and the share of all rows.")
    return explanation + f'<div class="pair">{"".join(lists)}</div>' if lists else ""


def genre_section(results: Sequence[EvalResult]) -> str:
    """GP - GH per kept genre at k = 1, before and after."""
    pair = before_after(results)
    if pair is None or not pair[0].genre_gaps or not pair[1].genre_gaps:
        return ""
    before, after = pair
    rows = [(genre, gap, after.genre_gaps.get(genre, math.nan)) for genre, gap in before.genre_gaps.items()]
    rows.sort(key=lambda row: -abs(row[1]) if math.isfinite(row[1]) else 0.0)
    plot = paired_bars("GP − GH at k = 1", (before.label, after.label), rows)
    explanation = note(
        "The share of a genre among the recommendations less its share of the users' histories: right of zero it is "
        "over-recommended, left of zero neglected. MGU is the mean of the bars' lengths."
    )
    return explanation + plot if plot else ""


def dropped_tables(dropped: Mapping[str, int], counters: Mapping[str, Mapping[str, int]]) -> str:
    """Data rows that were left out by reason, and per iteration what happened to the negatives."""
    parts = []
    if dropped:
        rows = [(_words(reason), count) for reason, count in dropped.items()]
        parts.append("<h3>Data</h3>" + mapping_table(("reason", "rows"), rows, css="text"))
    if counters:
        reasons = dict.fromkeys(reason for counts in counters.values() for reason in counts)
        rows_html = [
            [escape(_words(reason)), *(escape(counts.get(reason, "–")) for counts in counters.values())]
            for reason in reasons
        ]
        parts.append("<h3>Self-play negatives</h3>" + table(["", *map(escape, counters)], rows_html))
    return "".join(parts)


def timeline_section(spans: Sequence[Span], total_s: float) -> str:
    """The stages as bars over the run's seconds, and their seconds by kind with the share of the run."""
    if not spans:
        return ""
    end = max([total_s, *(span.start_s + span.duration_s for span in spans)])
    lanes: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda span: span.start_s):
        lanes.setdefault(span.name, []).append(span)
    plot = timeline([(name, [_bar(span) for span in lane]) for name, lane in lanes.items()], end)
    found = {_kind(span) for span in spans}
    kinds = [kind for kind in (*KINDS, "other") if kind in found]
    legend = "".join(f'<span><i class="swatch {kind}"></i>{kind}</span>' for kind in kinds)
    rows = [_time_row(escape(name), lane, kinds, end) for name, lane in lanes.items()]
    rows.append(_time_row("<strong>all stages</strong>", spans, kinds, end))
    explanation = note(f"Total {seconds(end)}. Stages that overlap make the shares add up to more than 100 %.")
    headers = ["stage", *(f"{kind}, s" for kind in kinds), "sum, s", "share"]
    return explanation + f'<p class="legend">{legend}</p>' + plot + table(headers, rows)


def _verdict(name: str, k: int, before: EvalResult, after: EvalResult) -> str:
    if name == "hr":
        differs = hr_differs(before, after, k)
        error = after.metrics.get(f"hr_se@{k}", math.nan)
        if differs is None or math.isnan(error):
            return "accuracy"
        return f"± {error:.4f}; " + ("more than two standard errors" if differs else "within two standard errors")
    old, new = before.metrics[f"{name}@{k}"], after.metrics[f"{name}@{k}"]
    if math.isnan(old) or math.isnan(new) or old == new:
        return "no difference" if old == new else "undefined"
    better = (new < old) == (name in LOWER_IS_BETTER)
    change = f"{100 * (new / old - 1):+.0f} %, ".replace("-", "−") if old else ""
    return change + ("better" if better else "worse")


def _stage_series(line: str, key: str, k: int, policies: Sequence[EvalResult]) -> Series:
    points = [(float(index), result.metrics.get(key, math.nan)) for index, result in enumerate(policies)]
    error = f"{key.partition('@')[0]}_se@{k}" if k else f"{key}_se"
    errors = [result.metrics[error] for result in policies if error in result.metrics]
    errors = errors if len(errors) == len(policies) else []
    return Series(name=line, points=points, errors=errors, markers=True)


def _share(count: int, num_rows: int) -> str:
    return f" · {100 * count / num_rows:.1f} %" if num_rows else ""


def _words(reason: str) -> str:
    return reason.removeprefix("num_").replace("_", " ")


def _kind(span: Span) -> str:
    return span.kind if span.kind in KINDS else "other"


def _bar(span: Span) -> Bar:
    hint = f"{span.name}, {span.kind}: {span.duration_s:.1f} s from {span.start_s:.1f} s"
    return Bar(css=_kind(span), start_s=span.start_s, duration_s=span.duration_s, hint=hint)


def _time_row(label: str, spans: Sequence[Span], kinds: Sequence[str], total_s: float) -> list[str]:
    sums = [sum(span.duration_s for span in spans if _kind(span) == kind) for kind in kinds]
    share = f"{100 * sum(sums) / total_s:.1f} %" if total_s else "–"
    return [label, *(f"{value:.1f}" if value else "–" for value in sums), f"{sum(sums):.1f}", share]
