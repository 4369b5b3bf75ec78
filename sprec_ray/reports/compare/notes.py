"""What a reader of a comparison must know of its settings, as sentences for the log and the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sprec_ray.config.compare import CompareConfig, chosen_methods, planned_runs
from sprec_ray.config.load import config_to_dict, flatten, read_yaml


def comparison_notes(comparison: CompareConfig) -> list[str]:
    """Settings of all runs that methods keep, methods that the measured rows chose, settings that studies do without.

    Raises ConfigError for settings that do not fit together.
    """
    return [*_kept(comparison), *_chosen_on_the_rows(comparison), *_not_of_studies(comparison)]


def _kept(comparison: CompareConfig) -> list[str]:
    """A sentence for every setting of all runs that methods' own files replace."""
    kept: dict[str, list[str]] = {}
    for method in chosen_methods(comparison):
        own: dict[str, Any] = {}
        for file in method.files:
            own |= flatten(read_yaml(Path(file)))
        own |= method.settings
        for key, value in comparison.set.items():
            if key in own and own[key] != value:
                kept.setdefault(key, []).append(f"{method.label} ({own[key]})")
    return [
        f"{key}={comparison.set[key]} leaves these as their files make them: {', '.join(methods)}; "
        f"METHOD.{key}={comparison.set[key]} sets it for one"
        for key, methods in kept.items()
    ]


def _chosen_on_the_rows(comparison: CompareConfig) -> Iterator[str]:
    """The methods with an epoch of a recommender or a weight that was chosen on the rows of ``split=valid``."""
    if comparison.split != "valid":
        return
    learned = {  # a dict: in order, each once
        str(run.parameters["method"]): None
        for run in planned_runs(comparison)
        if (run.config.needs_recommender and run.config.collaborative.learns)
        or (run.config.evaluation.adjustment != "none" and run.config.evaluation.gamma == "valid")
    }
    if learned:
        yield (
            f"split=valid: {', '.join(learned)} chose an epoch or a weight by these rows, which flatters them; compare "
            "them with others by split=test"
        )


def _not_of_studies(comparison: CompareConfig) -> Iterator[str]:
    """Settings of SPRec that its studies, which are methods of their own, do not share."""
    points = [method for method in chosen_methods(comparison) if method.study]
    runs = planned_runs(comparison) if points else []
    settings = {str(run.parameters["method"]): flatten(config_to_dict(run.config)) for run in runs}
    for key, value in comparison.method_set.get("sprec", {}).items():
        lacking = {
            point.name: None
            for point in points
            if key != f"selfplay.{point.study}" and settings[point.label].get(key) != value
        }
        if lacking:
            more = " ".join(f"{name}.{key}={value}" for name in lacking)
            yield f"sprec.{key}={value} is not the studies' setting; {more} makes it theirs"
