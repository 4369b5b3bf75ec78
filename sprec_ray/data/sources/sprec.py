"""SPRec's own format: rows of {instruction, input, output}, and a catalogue beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sprec_ray.config.data import DataConfig
from sprec_ray.data.prompts import parse_response
from sprec_ray.data.sources.raw_files import data_folder, find_file, read_json_rows, read_json_value
from sprec_ray.data.sources.source import SPLITS, SourceData, one_line
from sprec_ray.types import Example, Item

_SEPARATOR = '", "'
_MAX_JOINED_PARTS = 5


def read_sprec(config: DataConfig) -> SourceData:
    """The examples and the catalogue of a folder in SPRec's format.

    *Rows.* ``{train,valid,test}.json`` or ``.jsonl``, plain or ``.gz``. They are read from ``data.path`` itself when it
    holds a test file, else from its ``sampled_seed0/`` when that holds train and test, else from ``data.path`` or its
    ``sft_it0/``. ``example_id`` is the file and the row, counted from 0: ``train:17``. A history keeps its last
    ``data.max_history`` titles; rows with fewer than ``data.min_history`` are dropped.

    *Missing splits.* No test file: all rows, train before valid, are cut in file order by ``data.split``. No valid
    file: beside a ``sampled_seed0/`` it is the rows of ``data.path``'s own train file that were not sampled; else it is
    the end of train, the smaller of ``data.num_valid`` rows and valid's share of ``data.split``.

    *Catalogue.* ``id2name.json`` and ``name2genre.json`` in ``eval/`` or beside the rows; without them the titles of
    train are the catalogue. Titles that are UTF-8 read as latin-1 are repaired where the repaired title is in it.

    Raises ValueError when there are no rows to read, or when the catalogue holds none of the targets.
    """
    folder = data_folder(config)
    rows_folder = _rows_folder(folder)
    known = _read_catalogue(folder, rows_folder)
    parser = _RowParser({item.title for item in known}, min_history=config.min_history, max_history=config.max_history)
    rows = {name: _read_rows(rows_folder, name) for name in SPLITS}
    if rows_folder != folder and rows["test"] and not rows["valid"]:
        sampled = {(row["input"], row["output"]) for split in rows.values() for row in split}
        rows["valid"] = [row for row in _read_rows(folder, "train") if (row["input"], row["output"]) not in sampled]
    splits = {name: parser.parse(name, rows[name]) for name in SPLITS}
    splits, carved = _carve(splits, config)
    items = known or _items_of(splits["train"])
    titles = {item.title for item in items}
    unknown = sum(example.target not in titles for examples in splits.values() for example in examples)
    if unknown == sum(map(len, splits.values())):
        raise ValueError(
            f"{folder}: the catalogue holds none of the targets; put the id2name.json of these rows in eval/"
        )
    parser.noted["target_not_in_catalog"] += unknown
    parser.noted.update(carved)
    return SourceData(items=items, splits=splits, dropped=dict(parser.dropped), noted=dict(+parser.noted))


def repair_mojibake(title: str) -> str | None:
    """The title whose UTF-8 bytes were read as latin-1, or None when they were not.

    >>> repair_mojibake("WALLÂ·E (2008)")
    'WALL·E (2008)'
    """
    try:
        repaired = title.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return None
    return None if repaired == title else repaired


def split_titles(text: str, known: Collection[str]) -> list[str]:
    r"""The titles of ``"A", "B"``, outer quotes removed by the caller.

    A title may hold quotes, and even the separator: a part that is not a ``known`` title is joined with what follows it
    when that makes one.

    >>> split_titles('Dune", "The Good", "Bad" and Ugly', {"Dune", 'The Good", "Bad" and Ugly'})
    ['Dune', 'The Good", "Bad" and Ugly']
    """
    parts = text.split(_SEPARATOR)
    titles, first = [], 0
    while first < len(parts):
        last = first + 1
        for end in range(first + 1, min(first + _MAX_JOINED_PARTS, len(parts)) + 1):
            candidate = _SEPARATOR.join(parts[first:end])
            if candidate in known or repair_mojibake(candidate) in known:
                last = end
                break
        titles.append(_SEPARATOR.join(parts[first:last]))
        first = last
    return titles


class _RowParser:
    """Rows to examples, with counts of what was dropped and what was noted."""

    def __init__(self, known: Collection[str], *, min_history: int, max_history: int) -> None:
        self.known, self.min_history, self.max_history = known, min_history, max_history
        self.dropped: Counter[str] = Counter()
        self.noted: Counter[str] = Counter()

    def parse(self, file: str, rows: Sequence[Mapping[str, Any]]) -> tuple[Example, ...]:
        examples = []
        for number, row in enumerate(rows):
            reason, history, target = self._parse_row(row)
            if reason:
                self.dropped[reason] += 1
            else:
                self.noted["target_in_history"] += target in history
                examples.append(Example(example_id=f"{file}:{number}", history=tuple(history), target=target))
        return tuple(examples)

    def _parse_row(self, row: Mapping[str, Any]) -> tuple[str | None, list[str], str]:
        target = parse_response(row["output"].strip())
        if target is None or not target.strip():
            return "target_unparsed", [], ""
        text = row["input"]
        start, end = text.find('"'), text.rfind('"')
        titles = split_titles(text[start + 1 : end], self.known) if start < end else []
        if not titles or not all(title.strip() for title in titles):
            return "history_unparsed", [], ""
        if len(titles) < self.min_history:
            return "history_too_short", [], ""
        history = [self._resolve(title) for title in titles[-self.max_history :]]
        # Kept as text: the model reads such a title, though it can never recommend it.
        if self.known:
            self.noted["history_title_not_in_catalog"] += sum(title not in self.known for title in history)
        return None, history, self._resolve(target)

    def _resolve(self, title: str) -> str:
        if title not in self.known:
            repaired = repair_mojibake(title)
            if repaired in self.known and repaired is not None:
                self.noted["mojibake_repaired"] += 1
                return repaired
        return one_line(title)


def _rows_folder(folder: Path) -> Path:
    sampled, sft = folder / "sampled_seed0", folder / "sft_it0"
    if _find_rows(folder, "train") and _find_rows(folder, "test"):
        return folder
    if _find_rows(sampled, "train") and _find_rows(sampled, "test"):
        return sampled
    for candidate in (folder, sft):
        if _find_rows(candidate, "train"):
            return candidate
    raise ValueError(f"{folder} holds no train.json[l][.gz]; set data.path=FOLDER to a folder in SPRec's format")


def _find_rows(folder: Path, name: str) -> Path | None:
    return find_file(folder, f"{name}.json", f"{name}.jsonl")


def _read_rows(folder: Path, name: str) -> list[dict[str, Any]]:
    path = _find_rows(folder, name)
    return [] if path is None else read_json_rows(path, columns=("input", "output"))


def _read_catalogue(folder: Path, rows_folder: Path) -> tuple[Item, ...]:
    """The catalogue of the files that are there; empty when there is neither."""
    roots = [folder, rows_folder]
    if folder.name.startswith(("sampled_seed", "sft_it")):
        roots.append(folder.parent)
    places = [place for root in roots for place in (root / "eval", root)]
    names = next((path for place in places if (path := find_file(place, "id2name.json"))), None)
    genres_path = next((path for place in places if (path := find_file(place, "name2genre.json"))), None)
    genres = _read_object(genres_path) if genres_path else {}
    titles = _read_object(names) if names else {str(number): title for number, title in enumerate(genres)}
    return tuple(
        Item(item_id=item_id, title=one_line(str(title)), genres=genre_names(genres.get(title)))
        for item_id, title in titles.items()
    )


def genre_names(value: Any) -> tuple[str, ...]:
    """A title's genres: a list of names, one name, or nothing.

    >>> genre_names("Drama")
    ('Drama',)
    """
    return (value,) if isinstance(value, str) else tuple(value or ())


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json_value(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected one object, found {type(value).__name__}")
    return value


def _items_of(examples: Sequence[Example]) -> tuple[Item, ...]:
    titles = dict.fromkeys(title for example in examples for title in (*example.history, example.target))
    return tuple(Item(item_id=str(number), title=title) for number, title in enumerate(titles))


def _carve(
    splits: Mapping[str, tuple[Example, ...]], config: DataConfig
) -> tuple[dict[str, tuple[Example, ...]], dict[str, int]]:
    """The splits, missing ones cut from train, and how many rows were cut for which."""
    train, valid, test = (splits[name] for name in SPLITS)
    train_share, valid_share, _ = config.split
    carved: dict[str, int] = {}
    if not test:
        rows = train + valid
        first, second = round(len(rows) * train_share), round(len(rows) * (train_share + valid_share))
        train, valid, test = rows[:first], rows[first:second], rows[second:]
        carved = {"carved_valid": len(valid), "carved_test": len(test)}
    elif not valid:
        size = min(config.num_valid, round(len(train) * valid_share / (train_share + valid_share)))
        train, valid = train[: len(train) - size], train[len(train) - size :]
        carved = {"carved_valid": size}
    if not (train and valid and test):
        raise ValueError(
            f"{config.path}: too few rows for three splits (train {len(train)}, valid {len(valid)}, test {len(test)}); "
            "add rows or lower data.min_history"
        )
    return {"train": train, "valid": valid, "test": test}, carved
