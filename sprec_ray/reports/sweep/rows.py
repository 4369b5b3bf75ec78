"""A sweep as a table for other programs: sweep.csv, one row per trial and policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sprec_ray.reports.sweep.results import SweepData
from sprec_ray.types import EvalResult


def sweep_rows(data: SweepData) -> list[dict[str, Any]]:
    """One mapping per trial and policy, with the same keys in all; a trial without a result has one row.

    Columns: ``trial``, ``status``, ``chosen``, the dotted keys of the settings, ``policy`` (``sft``, ``iteration-0``
    ...), ``iteration`` (0 after the first SFT, then 1, 2 ...), every metric, ``total_s`` and ``seconds/<kind>`` of the
    whole trial, ``num_shared`` (stages adopted from other trials), ``error``, ``command``.
    """
    results = [result for trial in data.trials for result in trial.policies]
    metrics = list(dict.fromkeys(key for result in results for key in result.metrics))
    kinds = list(dict.fromkeys(kind for trial in data.trials for kind in trial.seconds))
    rows = []
    for trial in data.trials:
        policies: Sequence[EvalResult | None] = trial.policies or (None,)
        for iteration, result in enumerate(policies):
            found = result.metrics if result else {}
            rows.append(
                {
                    "trial": trial.name,
                    "status": trial.status,
                    "chosen": trial.name == data.chosen,
                    **{parameter.name: trial.parameters.get(parameter.name) for parameter in data.parameters},
                    "policy": result.label if result else None,
                    "iteration": iteration if result else None,
                    **{key: found.get(key) for key in metrics},
                    "total_s": trial.total_s,
                    **{f"seconds/{kind}": trial.seconds.get(kind) for kind in kinds},
                    "num_shared": len(trial.shared),
                    "error": trial.error,
                    "command": trial.command,
                }
            )
    return rows
