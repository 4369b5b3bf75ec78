"""What the page of a sweep calls its trials and parameters, and how it tells their lines apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sprec_ray.reports.markup import escape, value_text
from sprec_ray.reports.sweep.results import SweepData, SweepParameter, TrialRecord, Value
from sprec_ray.reports.tables import Column, all_columns, column_of, columns

MOST_STYLES = 4
"""Colours, and kinds of dashes, that a reader tells apart."""


def show(value: Value) -> str:
    """A setting's value for people: numbers with four significant digits, booleans as in YAML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def short_names(parameters: Sequence[SweepParameter]) -> dict[str, str]:
    """Each parameter's last word (``beta`` of ``preference.beta``), or the whole key where two share it."""
    last = {parameter.name: parameter.name.rsplit(".", 1)[-1] for parameter in parameters}
    taken = Counter(last.values())
    return {name: word if taken[word] == 1 else name for name, word in last.items()}


def trial_labels(data: SweepData) -> dict[str, str]:
    """By a trial's name its number on the page with its settings: ``#3 beta=0.1 num_negatives=2``."""
    short = short_names(data.parameters)
    return {
        trial.name: " ".join(
            [f"#{number}"]
            + [f"{word}={show(trial.parameters[name])}" for name, word in short.items() if name in trial.parameters]
        )
        for number, trial in enumerate(data.trials, start=1)
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class LineStyles:
    """Lines of trials: coloured by one listed parameter, dashed by a second.

    Without a parameter of few values the chosen trial is coloured and the others are grey.
    """

    parameters: tuple[SweepParameter, ...]
    names: dict[str, str]
    chosen: str | None

    def css(self, trial: TrialRecord) -> str:
        """The classes of a trial's line and markers."""
        if not self.parameters:
            return "s0" if trial.name == self.chosen else "rest"
        places = [
            parameter.values.index(value) if (value := trial.parameters.get(parameter.name)) in parameter.values else 0
            for parameter in self.parameters
        ]
        return " ".join(f"{kind}{place}" for kind, place in zip("sd", places, strict=False))

    def legend(self, *, dashes: bool = True) -> str:
        """What colours, and dashes, mean, as HTML."""
        if not self.parameters:
            pairs = [("s0", "chosen"), ("rest", "other trials")] if self.chosen else [("rest", "trials")]
        else:
            pairs = [
                (css, f"{self.names[parameter.name]}={show(value)}")
                for parameter, kind in zip(self.parameters, ("s{}", "key d{}")[: 1 + dashes], strict=False)
                for css, value in ((kind.format(place), value) for place, value in enumerate(parameter.values))
            ]
        entries = "".join(
            f'<span><svg class="stroke" viewBox="0 0 30 8"><path class="line {css}" d="M0 4H30"/></svg>'
            f"{escape(name)}</span>"
            for css, name in pairs
        )
        return f'<p class="legend">{entries}</p>'


def line_styles(data: SweepData) -> LineStyles:
    """Colours for the first parameter of at most four listed values, dashes for the second."""
    few = [parameter for parameter in data.parameters if 2 <= len(parameter.values) <= MOST_STYLES]
    return LineStyles(parameters=tuple(few[:2]), names=short_names(data.parameters), chosen=data.chosen)


def metric_columns(data: SweepData, *, every: bool) -> list[Column]:
    """The sweep's metric and its diversity first, then the others: all, or those of the table of results."""
    results = [result for trial in data.trials for result in trial.policies]
    first = [column_of(key) for key in (data.metric, data.diversity)]
    measured = [column for column in first if any(column.key in result.metrics for result in results)]
    return list(dict.fromkeys([*measured, *(all_columns(results) if every else columns(results))]))


def hint(label: str, trial: TrialRecord, shown: Sequence[Column]) -> str:
    """What a pointer over a trial shows: its settings, its state when it did not finish, and metrics."""
    values = ", ".join(f"{column.title} {value_text(trial.final(column.key))}" for column in shown)
    state = f" ({trial.status} at {trial.policies[-1].label})" if trial.policies and trial.status != "finished" else ""
    return f"{label}{state}: {values if trial.policies else trial.error or trial.status}"
