"""What the data stage of a run has written, read when it is first needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Literal

from sprec_ray.data.catalog import Catalog
from sprec_ray.storage.artifacts import read_rows
from sprec_ray.types import Example

Split = Literal["test", "valid"]


def read_examples(file: Path) -> list[Example]:
    """The rows of the next-item tasks."""
    return read_rows(file, Example)


def evaluations_folder(split: str) -> str:
    """The folder of the evaluations on a split, in a run."""
    return "evaluations" if split == "test" else f"evaluations-{split}"


class RunData:
    """The examples and the catalogue of a run; ``read`` makes examples of its files' rows."""

    def __init__(self, folder: Path, split: Split, *, read: Callable[[Path], list[Example]] = read_examples) -> None:
        self._folder, self._split, self._read = folder, split, read

    @cached_property
    def catalog(self) -> Catalog:
        """The distinct titles."""
        return Catalog.read(self._folder / "catalog.json")

    @cached_property
    def train(self) -> list[Example]:
        """All training examples."""
        return self._read(self._folder / "train.jsonl")

    @cached_property
    def valid(self) -> list[Example]:
        """The examples by which settings are chosen, and a collaborative model's last epoch."""
        return self._read(self._folder / "valid.jsonl")

    @cached_property
    def measured(self) -> list[Example]:
        """The examples that policies are measured on."""
        return self._read(self._folder / f"{self._split}.jsonl")

    @cached_property
    def popularity(self) -> Counter[str]:
        """Training events of every title of the catalogue.

        A window's history is the earlier part of the same sequence: targets alone count every event about once.
        """
        return Counter(example.target for example in self.train if example.target in self.catalog)
