"""The mailbox between the driver and the training workers: an actor whose process imports nothing heavy.

Tasks pass through it as references, so it never unpacks one: that would import torch beside the workers that are being
launched, and they would start seconds later.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any


class Mailbox:
    """Tasks from the driver to the workers; results, progress and states back. It lives on the driver's machine."""

    def __init__(self) -> None:
        self.tasks: list[list[Any] | None] = []
        self.outcomes: dict[int, tuple[str, Any]] = {}
        self.progress: dict[int, tuple[int, int, float]] = {}
        self.states: dict[int, tuple[int, bytes]] = {}
        self.ready_at: float | None = None
        self.places: dict[int, str] = {}
        self.changed = asyncio.Condition()

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def post(self, task: list[Any] | None) -> int:
        """Add a task, a list of its reference, or None for the end; returns its number."""
        self.tasks.append(task)
        await self._notify()
        return len(self.tasks) - 1

    async def first_unfinished(self) -> int:
        """The number of the task that a group of workers begins with."""
        self.ready_at = self.ready_at or time.time()
        return next((index for index in range(len(self.tasks)) if index not in self.outcomes), len(self.tasks))

    async def arrive(self, rank: int, place: str) -> None:
        """A worker says where it computes."""
        self.places[rank] = place

    async def where(self) -> list[str]:
        """Where the workers compute, by rank."""
        return [self.places[rank] for rank in sorted(self.places)]

    async def is_idle(self) -> bool:
        """Whether every task has an outcome."""
        return len(self.outcomes) == len(self.tasks)

    async def take(self, index: int) -> list[Any] | None:
        """What was posted under a number, waited for."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.tasks) > index)
        return self.tasks[index]

    async def finish(self, index: int, outcome: tuple[str, Any]) -> None:
        """Keep what became of a task: ``done`` and its summary, or ``failed`` and a message."""
        # The first failure of a task is its cause; workers that lose their peers fail after it.
        self.outcomes.setdefault(index, outcome)
        await self._notify()

    async def report(self, index: int, progress: tuple[int, int, float]) -> None:
        """Keep how far a task is: step, number of steps, loss."""
        self.progress[index] = progress

    async def save(self, index: int, state: bytes) -> None:
        """Keep the state of a task between two steps."""
        # By value: what a worker has put into the object store is gone when it dies.
        self.states[index] = (self.states.get(index, (0, b""))[0] + 1, state)
        await self._notify()

    async def state(self, index: int) -> bytes | None:
        """The state that was saved last."""
        return self.states[index][1] if index in self.states else None

    async def poll(
        self, index: int, num_saves: int, timeout_s: float
    ) -> tuple[tuple[str, Any] | None, tuple[int, int, float] | None, int]:
        """The outcome, the latest progress and how many states were saved.

        Waits at most ``timeout_s`` seconds for an outcome or for more than ``num_saves`` states.
        """

        def is_news() -> bool:
            return index in self.outcomes or self.states.get(index, (0, b""))[0] > num_saves

        async with self.changed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait_for(is_news), timeout_s)
        outcome = self.outcomes.get(index)
        if outcome is not None:
            self.outcomes[index] = (outcome[0], None)  # the driver has it now; it may be large
            self.tasks[index] = None
            self.states.pop(index, None)
        return outcome, self.progress.get(index), self.states.get(index, (0, b""))[0]

    async def ready_time(self) -> float | None:
        """When the first worker was ready, in seconds since the epoch."""
        return self.ready_at
