"""MovieLens as GroupLens ships it: the 100K, the ``::`` (1M, 10M) and the CSV (latest) layouts."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path

from sprec_ray.config.data import DataConfig
from sprec_ray.data.sources.raw_files import (
    data_folder,
    find_file,
    numbered_lines,
    read_text,
    require_file,
    split_fields,
)
from sprec_ray.data.sources.source import SourceData
from sprec_ray.types import Interaction, Item

Ratings = Iterator[tuple[int, str, str, str, str]]
"""Line number, user, item, stars and timestamp."""


def read_movielens(config: DataConfig) -> SourceData:
    """Items and interactions of the MovieLens folder ``data.path``; which layout it is follows from its files.

    Every rating counts as an interaction, whatever its value, as in SPRec; the stars are read for ``data.task=pairs``.
    Titles stay as they are in the file,
    "Matrix, The (1999)" included. ``order`` is the line number of the rating, which breaks ties of the timestamp:
    three quarters of the ratings have the same second as another one of their user.
    """
    folder = data_folder(config)
    layout = next((name for name in _LAYOUTS if find_file(folder, name)), None)
    if layout is None:
        raise ValueError(f"{folder} holds none of {', '.join(_LAYOUTS)}; set data.path=FOLDER to a MovieLens folder")
    read_items, read_ratings = _LAYOUTS[layout]
    ratings = require_file(folder, layout)
    items = tuple(read_items(folder))
    interactions = []
    for number, user, item, stars, timestamp in read_ratings(ratings):
        try:
            seconds = float(int(timestamp))
        except ValueError:
            raise ValueError(
                f"{ratings}, line {number}: the timestamp {timestamp!r} is not a whole number; mend the line"
            ) from None
        rating = _stars(stars, f"{ratings}, line {number}") if config.task == "pairs" else None
        interactions.append(Interaction(user_id=user, item_id=item, timestamp=seconds, order=number, rating=rating))
    return SourceData(items=items, interactions=tuple(interactions))


def _stars(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{where}: the rating {text!r} is not a number; mend the line") from None


def _items_100k(folder: Path) -> Iterator[Item]:
    genres = [
        split_fields(line, "|", at_least=2, where=f"line {number} of u.genre")[0]
        for number, line in numbered_lines(require_file(folder, "u.genre"), encoding="latin-1")
    ]
    path = require_file(folder, "u.item")
    for number, line in numbered_lines(path, encoding="latin-1"):
        fields = split_fields(line, "|", at_least=5 + len(genres), where=f"{path}, line {number}")
        flags = fields[-len(genres) :]
        # "unknown" is the absence of a genre, not a genre.
        names = tuple(name for name, flag in zip(genres, flags, strict=True) if flag == "1" and name != "unknown")
        yield Item(item_id=fields[0], title=fields[1], genres=names)


def _ratings_100k(path: Path) -> Ratings:
    for number, line in numbered_lines(path, encoding="latin-1"):
        user, item, stars, timestamp = split_fields(line, "\t", at_least=4, where=f"{path}, line {number}")[:4]
        yield number, user, item, stars, timestamp


def _items_dat(folder: Path) -> Iterator[Item]:
    path = require_file(folder, "movies.dat")
    for number, line in numbered_lines(path, encoding=_encoding_of(path)):
        fields = split_fields(line, "::", at_least=3, where=f"{path}, line {number}")
        yield Item(item_id=fields[0], title="::".join(fields[1:-1]), genres=_genres(fields[-1]))


def _ratings_dat(path: Path) -> Ratings:
    for number, line in numbered_lines(path, encoding="latin-1"):
        user, item, stars, timestamp = split_fields(line, "::", at_least=4, where=f"{path}, line {number}")[:4]
        yield number, user, item, stars, timestamp


def _items_csv(folder: Path) -> Iterator[Item]:
    for _, row in _csv_rows(require_file(folder, "movies.csv"), ("movieId", "title", "genres")):
        yield Item(item_id=row["movieId"], title=row["title"], genres=_genres(row["genres"]))


def _ratings_csv(path: Path) -> Ratings:
    for number, row in _csv_rows(path, ("userId", "movieId", "timestamp")):
        yield number, row["userId"], row["movieId"], row.get("rating", ""), row["timestamp"]


_LAYOUTS: dict[str, tuple[Callable[[Path], Iterator[Item]], Callable[[Path], Ratings]]] = {
    "u.data": (_items_100k, _ratings_100k),
    "ratings.dat": (_items_dat, _ratings_dat),
    "ratings.csv": (_items_csv, _ratings_csv),
}


def _csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    found = rows.fieldnames or []
    missing = [column for column in columns if column not in found]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]}; found {', '.join(found)}")
    for row in rows:
        if any(row[column] is None for column in columns):
            raise ValueError(f"{path}, line {rows.line_num}: too few fields; mend the line")
        yield rows.line_num, row


def _genres(text: str) -> tuple[str, ...]:
    return () if text == "(no genres listed)" else tuple(name for name in text.split("|") if name)


def _encoding_of(path: Path) -> str:
    """UTF-8 where the whole file is (10M); latin-1 otherwise (1M), whose accents are never valid UTF-8."""
    try:
        read_text(path, encoding="latin-1").encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"
