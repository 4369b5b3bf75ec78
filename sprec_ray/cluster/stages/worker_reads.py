"""Policies read on the training workers, with the time that the workers were busy with something else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class WorkerReads:
    """Runs read tasks, each under a label, by ``run``."""

    def __init__(self, run: Callable[[Any, str], dict[str, Any]]) -> None:
        self._run = run
        self.waited_s = 0.0
        """Seconds, since it was last set to 0, in which the workers did something else than these tasks."""

    def __call__(self, task: Any, label: str) -> dict[str, Any]:
        """The task's summary."""
        start = time.monotonic()
        summary = self._run(task, label)
        self.waited_s += max(0.0, time.monotonic() - start - summary["compute_s"])
        return summary
