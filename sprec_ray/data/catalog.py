"""The catalogue: the distinct titles that can be recommended, with their genres."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sprec_ray.storage.artifacts import ArtifactError, read_json, write_json
from sprec_ray.types import Item


@dataclass(frozen=True, slots=True)
class Catalog:
    """Distinct titles in the order of their first appearance, and the genres of each.

    The unit of recommendation is a title: a model that writes text cannot tell apart two items of one title, so they
    are one entry here, and its genres are the union of theirs. Raises ValueError when a title is listed twice.
    """

    titles: tuple[str, ...]
    genres: Mapping[str, tuple[str, ...]]
    """Every title is a key; a title of unknown genre maps to an empty tuple."""
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "genres", {title: tuple(self.genres.get(title, ())) for title in self.titles})
        object.__setattr__(self, "_index", {title: index for index, title in enumerate(self.titles)})
        if len(self._index) != len(self.titles):
            twice = next(title for index, title in enumerate(self.titles) if self._index[title] != index)
            raise ValueError(f"the catalogue lists {twice!r} twice; make it with Catalog.from_items, which unites them")

    @classmethod
    def from_items(cls, items: Iterable[Item]) -> Catalog:
        """The catalogue of raw items.

        >>> Catalog.from_items([Item(item_id="1", title="Emma", genres=("Drama",)),
        ...                     Item(item_id="2", title="Emma", genres=("Comedy", "Drama"))]).genres
        {'Emma': ('Drama', 'Comedy')}
        """
        genres: dict[str, dict[str, None]] = {}  # the inner dict is an ordered set
        for item in items:
            genres.setdefault(item.title, {}).update(dict.fromkeys(item.genres))
        return cls(titles=tuple(genres), genres={title: tuple(names) for title, names in genres.items()})

    def index_of(self, title: str) -> int | None:
        """The position of a title in ``titles``, or None for a title that is not in the catalogue."""
        return self._index.get(title)

    def __len__(self) -> int:
        return len(self.titles)

    def __contains__(self, title: object) -> bool:
        return title in self._index

    def write(self, path: Path) -> None:
        """Write one JSON file, whole or not at all."""
        write_json(path, {"titles": self.titles, "genres": self.genres})

    @classmethod
    def read(cls, path: Path) -> Catalog:
        """The catalogue ``write`` wrote. Raises ArtifactError naming the file when it is missing or damaged."""
        values = read_json(path)
        try:
            return cls(
                titles=tuple(values["titles"]), genres={key: tuple(names) for key, names in values["genres"].items()}
            )
        except (KeyError, TypeError, AttributeError):
            raise ArtifactError(f"{path} is not a catalogue; delete {path.parent} and run again") from None
