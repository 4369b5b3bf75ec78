"""What each method of a comparison cost: as if it were alone, and beside the others."""

from __future__ import annotations

import math

from sprec_ray.reports.compare.results import CompareData, Cost, RunRecord
from sprec_ray.reports.markup import escape, note, seconds, table

UNIT = "sprec"
"""The method whose run is the measure of the whole."""


def cost_section(data: CompareData) -> str:
    """Processor-seconds and tokens of every method, and the whole against one run of SPRec."""
    unit = unit_cost(data)
    on_gpu = any(run.spent.gpu_s for run in data.runs)
    done = [method.label for method in data.methods if data.measured(method.label)]
    rows = [_row(escape(label), data.runs_of(label), unit, on_gpu) for label in done]
    for name, cost in (("stages of earlier runs", data.outside), ("small Llama, once", data.pretraining)):
        if paid := _processor_s(cost, on_gpu):
            rows.append([name, "", f"{paid:.0f}", "", "", "", ""])
    kind = "GPU" if on_gpu else "CPU"
    headers = [
        "method",
        f"alone, {kind}-s per run",
        f"spent, {kind}-s",
        f"alone, runs of {UNIT}",
        "trained tokens",
        "decoded tokens",
        "stages of others",
    ]
    explanation = note(
        f"{kind}-seconds: the seconds of a stage times the {kind}s that its side reserves, whether it used them or "
        "waited; launching engines and pre-training are not in them. Alone: stages that other runs made are counted "
        "as if this run had made them (mean over seeds; – where the run that made them is gone). Spent: what the "
        "method's runs computed in this comparison, all seeds together. Tokens: alone, mean over seeds; prompts and "
        "responses of optimizer steps, and answers."
    )
    return explanation + table(headers, rows) + note(total_sentence(data))


def unit_cost(data: CompareData) -> float:
    """Processor-seconds of one SPRec run alone; NaN where none is finished."""
    on_gpu = any(run.spent.gpu_s for run in data.runs)
    found = [_alone(run, on_gpu) for run in data.runs if run.method == UNIT and run.measured is not None]
    return sum(found) / len(found) if found else math.nan


def total_sentence(data: CompareData) -> str:
    """The time of the comparison, and what its methods cost in runs of SPRec, each method with one seed."""
    on_gpu = any(run.spent.gpu_s for run in data.runs)
    text = f"The comparison took {seconds(data.total_s)}." if data.total_s else ""
    unit = unit_cost(data)
    done = [method for method in data.methods if data.measured(method.label)]
    if math.isnan(unit) or not unit:
        return text
    num_seeds = max(len(data.measured(method.label)) for method in done)
    outside = _processor_s(data.outside, on_gpu)
    spent = outside / num_seeds + sum(_mean_spent(data, method.label, on_gpu) for method in done)
    alone = sum(_mean_alone(data, method.label, on_gpu) for method in done)
    taken = ", with what was taken from earlier runs," if outside else ""
    unshared = "" if math.isnan(alone) else f"; had nothing been shared, {alone / unit:.1f} times"
    return (
        f"{text} With one seed the {len(done)} methods that have finished cost{taken} {spent / unit:.1f} times one run "
        f"of {UNIT}{unshared}."
    ).strip()


def _mean_spent(data: CompareData, label: str, on_gpu: bool) -> float:
    runs = [run for run in data.runs_of(label) if run.measured is not None]
    return sum(_processor_s(run.spent, on_gpu) for run in runs) / len(runs)


def _mean_alone(data: CompareData, label: str, on_gpu: bool) -> float:
    runs = [run for run in data.runs_of(label) if run.measured is not None]
    return sum(_alone(run, on_gpu) for run in runs) / len(runs)


def _row(label: str, runs: list[RunRecord], unit: float, on_gpu: bool) -> list[str]:
    done = [run for run in runs if run.measured is not None]
    known = [run.alone for run in done if run.alone is not None]
    is_known = bool(done) and len(known) == len(done)
    alone = sum(_processor_s(cost, on_gpu) for cost in known) / len(known) if is_known else math.nan
    spent = sum(_processor_s(run.spent, on_gpu) for run in runs)
    tokens = [
        f"{sum(getattr(cost, key) for cost in known) / len(known):,.0f}" if is_known else "–"
        for key in ("trained_tokens", "decoded_tokens")
    ]
    return [
        label,
        "–" if math.isnan(alone) else f"{alone:.0f}",
        f"{spent:.0f}",
        "–" if math.isnan(alone / unit) else f"{alone / unit:.2f}",
        *tokens,
        str(sum(len(run.shared) for run in runs)),
    ]


def _alone(run: RunRecord, on_gpu: bool) -> float:
    return math.nan if run.alone is None else _processor_s(run.alone, on_gpu)


def _processor_s(cost: Cost, on_gpu: bool) -> float:
    return cost.gpu_s if on_gpu else cost.cpu_s
