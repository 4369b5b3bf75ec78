"""Interactions to examples: windows of a user, a split in order of time, and seeded samples."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from sprec_ray.types import Example, PairExample

Row = TypeVar("Row", Example, PairExample)


class Event(NamedTuple):
    """One interaction of a user; sorts by time, then by raw row number."""

    timestamp: float
    order: int
    title: str


def user_windows(
    user_id: str, events: Sequence[Event], *, min_interactions: int, min_history: int, max_history: int
) -> list[Example]:
    """The examples of one user, oldest target first: every title with at least ``min_history`` titles before it.

    Events are ordered by ``(timestamp, order)``; ``order`` is the raw row number, the documented tie-break. A user with
    fewer than ``min_interactions`` events has no examples. The position in ``example_id`` is the target's, from 0.

    >>> events = [Event(9.0, 0, "C"), Event(1.0, 1, "A"), Event(5.0, 2, "B")]
    >>> for example in user_windows("7", events, min_interactions=3, min_history=1, max_history=10):
    ...     print(example.example_id, example.history, example.target)
    7:1 ('A',) B
    7:2 ('A', 'B') C
    """
    if len(events) < min_interactions:
        return []
    ordered = sorted(events, key=lambda event: (event.timestamp, event.order))
    titles = [event.title for event in ordered]
    return [
        Example(
            example_id=f"{user_id}:{position}",
            history=tuple(titles[max(0, position - max_history) : position]),
            target=titles[position],
            timestamp=ordered[position].timestamp,
        )
        for position in range(min_history, len(titles))
    ]


def chronological_split(
    examples: Sequence[Example], shares: tuple[float, float, float]
) -> dict[str, tuple[Example, ...]]:
    """The examples as ``train``, ``valid`` and ``test``, cut by the time of their targets.

    They are sorted by (timestamp, user, position), and both cuts move back to the first example of their second: equal
    times are never on two sides, so every target of a split is strictly later than all targets of the split before it.
    Raises ValueError when a split would be empty.
    """
    ordered = sorted(examples, key=_chronological)
    times = [example.timestamp for example in ordered]
    cuts = [round(len(ordered) * share) for share in (shares[0], shares[0] + shares[1])]
    first, second = (bisect_left(times, times[cut]) if cut < len(times) else len(times) for cut in cuts)
    splits = {
        "train": tuple(ordered[:first]),
        "valid": tuple(ordered[first:second]),
        "test": tuple(ordered[second:]),
    }
    empty = [name for name, rows in splits.items() if not rows]
    if empty:
        raise ValueError(
            f"the {empty[0]} split of {len(ordered)} windows is empty; lower data.min_interactions or "
            "data.min_history, change data.split, or add interactions with distinct timestamps"
        )
    return splits


def sample_examples(examples: Sequence[Row], count: int, *, seed: int, purpose: str) -> tuple[Row, ...]:
    """At most ``count`` examples, drawn without replacement, in the order they were drawn.

    The result depends on the set of examples, ``seed`` and ``purpose``, not on the order of ``examples``. A smaller
    ``count`` gives the beginning of what a larger one gives. All are returned, in drawn order, when there are fewer.
    """
    ordered = sorted(examples, key=lambda example: example.example_id)
    drawn = derive_rng(seed, purpose).permutation(len(ordered))[:count]
    return tuple(ordered[index] for index in drawn)


def derive_rng(seed: int, purpose: str) -> np.random.Generator:
    """A random generator of its own for each purpose of a seed, the same in every process and on every platform."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def _chronological(example: Example) -> tuple[float, str, int]:
    user_id, _, position = example.example_id.rpartition(":")
    return example.timestamp, user_id, int(position)
