"""What becomes of rollouts on their way from the decoders to the caller: chunks on disk, and a result to wait for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from sprec_ray.cluster.engines.progress import IsValid
from sprec_ray.storage.artifacts import read_rollouts
from sprec_ray.types import Rollout

PromptRow = tuple[str, Sequence[int]]
"""An example's id and the token ids of its prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What becomes of rollouts on their way to the caller."""

    label: str = "decoding"
    """Heads the progress bar."""
    is_valid: IsValid | None = None
    """Which texts count as valid in the progress bar."""
    chunks: Path | None = None
    """Folder where finished chunks are kept; those of an interrupted decode of the same rows are read from it."""
    kept: Callable[[Path], None] = lambda chunks: None
    """Called with that folder whenever a chunk was kept."""
    then: Callable[[list[Rollout]], None] | None = None
    """Called with all rollouts as soon as the last is there, before the caller gets them."""


class PendingDecode:
    """Rollouts on their way; the caller may train meanwhile."""

    def __init__(self, future: Future[list[Rollout]]) -> None:
        self._future = future

    def result(self) -> list[Rollout]:
        """The rollouts in the order of the rows, waiting for them. Raises what the decoding raised."""
        return self._future.result()


def chunk_file(folder: Path, places: range) -> Path:
    """Where the rollouts of a chunk are kept."""
    return folder / f"{places.start:08d}-{places.stop:08d}.jsonl"


def kept_chunk(folder: Path | None, rows: Sequence[PromptRow], places: range) -> list[Rollout] | None:
    """The rollouts of a chunk that an interrupted decode has left."""
    if folder is None or not chunk_file(folder, places).is_file():
        return None
    rollouts = read_rollouts(chunk_file(folder, places))
    same = [rollout.example_id for rollout in rollouts] == [rows[place][0] for place in places]
    return rollouts if same else None
