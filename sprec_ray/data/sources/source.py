"""What every reader returns: the items, and either interactions, ready-made splits, or ready-made pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sprec_ray.types import Example, Interaction, Item, PairExample

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceData:
    """The raw data of one source. Exactly one of ``interactions``, ``splits`` and ``pairs`` is set."""

    items: tuple[Item, ...]
    interactions: tuple[Interaction, ...] | None = None
    """User-item events in the order of the raw rows; windows and splits are still to be made."""
    splits: Mapping[str, tuple[Example, ...]] | None = None
    """Ready-made examples under ``train``, ``valid`` and ``test``."""
    pairs: Mapping[str, tuple[PairExample, ...]] | None = None
    """Ready-made rows of ``task=pairs``, under the same names."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Raw rows that were left out, by reason."""
    noted: Mapping[str, int] = field(default_factory=dict)
    """Rows or titles that were kept, though changed or unusual, by reason."""

    def __post_init__(self) -> None:
        ready = [rows for rows in (self.splits, self.pairs) if rows is not None]
        assert len(ready) + (self.interactions is not None) == 1, "a source has interactions, splits or pairs"
        assert all(tuple(rows) == SPLITS for rows in ready), f"splits are {SPLITS}"


def one_line(title: str) -> str:
    r"""The title with line feeds and carriage returns as spaces, because a response ends at its first line feed.

    Other separators, U+0085 and U+2028 among them, are part of titles and stay.

    >>> one_line("Dune\nMessiah")
    'Dune Messiah'
    """
    return title.replace("\r\n", " ").replace("\n", " ").replace("\r", " ")
