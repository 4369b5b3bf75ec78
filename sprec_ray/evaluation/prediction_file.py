"""Files of predictions in SPRec's format (arXiv 2412.09243), and the catalogue that they are scored against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sprec_ray.data.catalog import Catalog
from sprec_ray.data.prompts import parse_response
from sprec_ray.data.sources.raw_files import find_file, read_json_rows, read_json_value
from sprec_ray.data.sources.source import one_line
from sprec_ray.data.sources.sprec import genre_names, repair_mojibake, split_titles
from sprec_ray.evaluation.grounding import text_to_ground
from sprec_ray.types import Item


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """The rows of a prediction file, and what was odd about them."""

    targets: tuple[str, ...]
    histories: tuple[tuple[str, ...], ...]
    generated: tuple[str, ...]
    counts: Mapping[str, int]


def read_sprec_catalog(folder: Path) -> tuple[Catalog, tuple[str, ...], list[str]]:
    """The catalogue, the kept genres (none when a genre file is missing) and notes on what is missing."""
    if not folder.is_dir():
        raise ValueError(f"catalog={folder} is not a folder; it must hold id2name.json (SPRec's eval/<dataset>)")
    names = find_file(folder, "id2name.json")
    if names is None:
        raise ValueError(f"catalog={folder} holds no id2name.json[.gz]; pass SPRec's eval/<dataset> folder")
    paths = {name: find_file(folder, name) for name in ("name2genre.json", "genre_dict.json")}
    missing = [name for name, path in paths.items() if path is None]
    tables = {name: _object(path) for name, path in paths.items() if path is not None}
    genres = tables.get("name2genre.json", {})
    catalog = Catalog.from_items(
        Item(item_id=item_id, title=one_line(str(title)), genres=genre_names(genres.get(title)))
        for item_id, title in _object(names).items()
    )
    if not len(catalog):
        raise ValueError(f"{names} lists no title; pass SPRec's eval/<dataset> folder")
    if missing:
        return catalog, (), [f"MGU and DGU are undefined: {folder} holds no {' and no '.join(missing)}."]
    kept = tuple(tables["genre_dict.json"])
    return catalog, kept, [] if kept else [f"MGU and DGU are undefined: {paths['genre_dict.json']} lists no genre."]


def read_popularity(folder: Path) -> dict[str, int]:
    """Training events per title, of ``popularity.json``; none without the file, ValueError for what is no count."""
    path = find_file(folder, "popularity.json")
    events = {} if path is None else _object(path)
    wrong = next((title for title, count in events.items() if type(count) is not int or count < 0), None)
    if wrong is not None:
        raise ValueError(f"{path}: {wrong!r} must have a whole number of training events, not {events[wrong]!r}")
    return events


def read_predictions(path: Path, catalog: Catalog) -> Predictions:
    """The rows of a prediction file; ValueError names the row that has no ``input``, ``output`` or ``predict``."""
    rows = read_json_rows(path, columns=("input", "output"))
    targets, histories, generated = [], [], []
    num_repaired = num_empty = num_several = 0

    def resolve(title: str) -> str:
        nonlocal num_repaired
        resolved = resolve_title(title, catalog)
        num_repaired += resolved != title
        return resolved

    for number, row in enumerate(rows, start=1):
        if row.get("candidates"):
            raise ValueError(
                f"{path}, row {number}: the prompt lists candidates, which this job would read as its history; the "
                "report of the run that wrote the file has their metrics"
            )
        texts = row.get("predict")
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{path}, row {number}: 'predict' must be a list of texts; is this a prediction file?")
        text = texts[0] if texts else ""
        num_empty += not text.strip()
        num_several += len(texts) > 1
        quoted = row["input"][row["input"].find('"') + 1 : max(row["input"].rfind('"'), 0)]
        histories.append(tuple(resolve(title) for title in split_titles(quoted, catalog.genres) if title))
        output = row["output"].strip()
        targets.append(resolve(parse_response(output) or output))
        title = text_to_ground(text)
        generated.append(text.replace(title, resolve(title), 1))
    return Predictions(
        targets=tuple(targets),
        histories=tuple(histories),
        generated=tuple(generated),
        counts={
            "num_empty_predictions": num_empty,
            "num_rows_with_several_predictions": num_several,
            "num_repaired_titles": num_repaired,
        },
    )


def resolve_title(title: str, catalog: Catalog) -> str:
    """A title as the catalogue spells it: UTF-8 that was read as latin-1 is repaired where that is in the catalogue."""
    repaired = None if title in catalog else repair_mojibake(title)
    return repaired if repaired is not None and repaired in catalog else title


def named_file(key: str, name: str | Path) -> Path:
    """The path of an argument; ValueError where there is no such file."""
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"{key}={path} does not exist; name the file, with its .gz when it is compressed")
    return path


def _object(path: Path) -> dict[str, Any]:
    value = read_json_value(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected one object, found {type(value).__name__}")
    return value
