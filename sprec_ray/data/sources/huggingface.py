"""Any table the ``datasets`` library reads: a saved folder, local files, or a dataset on the hub."""

from __future__ import annotations

import contextlib
import datetime
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sprec_ray.config.data import DataConfig
from sprec_ray.data.sources.raw_files import refuse_pointer
from sprec_ray.data.sources.source import SourceData, one_line
from sprec_ray.types import Interaction, Item

_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def read_huggingface(config: DataConfig) -> SourceData:
    """Items and interactions of a table with one interaction per row.

    ``data.path`` is a folder written by ``save_to_disk``, a csv, json, jsonl or parquet file (csv and json also
    ``.gz``), a folder of such files of one format (those whose name starts with ``data.hf_split``, or all when none
    does), or the name of a dataset on the hub, of which ``data.hf_split`` is read.

    Columns are named by ``data.{user,item,time,title,genres}_column``. Where the table has no ``item_id`` and no other
    item column is named, the title is the item.
    Times are numbers (seconds), dates, or ISO 8601 text (UTC where no zone is given). Genres are a list of names or
    text separated by ``|``. ``order`` is the row number. Rows without a user, item, title or time are dropped.

    Raises ValueError for a source or column that is not there, and for a time that cannot be read.
    """
    table = _load(config)
    found = list(table.column_names)
    wanted = [config.user_column, config.time_column, config.title_column]
    if config.item_column != DataConfig.item_column:
        wanted.append(config.item_column)  # named by the user: a slip must not fall back to the title
    wanted += filter(None, [config.genres_column, config.rating_column])
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"{config.path} has no column {missing[0]!r}; found {', '.join(found)}: set data.*_column")
    item_column = config.item_column if config.item_column in found else config.title_column
    return _to_source(config, _rows(table), item_column)


def _to_source(config: DataConfig, rows: Iterator[dict[str, Any]], item_column: str) -> SourceData:
    items: dict[str, Item] = {}
    interactions = []
    dropped: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    for number, row in enumerate(rows):
        user, item_id, title = (_as_text(row[name]) for name in (config.user_column, item_column, config.title_column))
        seconds = _as_seconds(row[config.time_column], where=f"{config.path}, row {number}")
        empty = [name for name, value in (("user", user), ("item", item_id), ("title", title)) if not value.strip()]
        if empty or seconds is None:
            dropped[f"{empty[0] if empty else 'time'}_missing"] += 1
            continue
        genres = _as_genres(row[config.genres_column]) if config.genres_column else ()
        item = items.setdefault(item_id, Item(item_id=item_id, title=one_line(title), genres=genres))
        # One item under two spellings: the first row names it.
        noted["title_differs_from_first"] += item.title != one_line(title)
        rating = _as_rating(row[config.rating_column], f"{config.path}, row {number}") if config.rating_column else None
        interactions.append(Interaction(user_id=user, item_id=item_id, timestamp=seconds, order=number, rating=rating))
    if not interactions:
        raise ValueError(f"{config.path} holds no complete row; check data.*_column (dropped: {dict(dropped)})")
    return SourceData(
        items=tuple(items.values()), interactions=tuple(interactions), dropped=dict(dropped), noted=dict(+noted)
    )


def _load(config: DataConfig) -> Any:
    import datasets  # takes seconds and may import torch, which the other readers do without

    assert config.path is not None, "RunConfig demands data.path"
    path = Path(config.path).expanduser()
    try:
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(str(path))
            if not isinstance(saved, datasets.DatasetDict):
                return saved
            if config.hf_split not in saved:
                raise ValueError(
                    f"{path} has no split {config.hf_split!r}; set data.hf_split to one of {', '.join(saved)}"
                )
            return saved[config.hf_split]
        if path.exists():
            files = _local_files(path, config.hf_split)
            return datasets.load_dataset(_format(files[0]), data_files=[str(file) for file in files], split="train")
        return datasets.load_dataset(config.path, split=config.hf_split)
    except datasets.exceptions.DatasetGenerationError as error:
        reason = str(error.__cause__ or error).split("\n", 1)[0]
        raise ValueError(f"{config.path} cannot be read as a table ({reason}); mend the file") from None
    except (FileNotFoundError, ConnectionError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(
            f"{config.path} is neither a local file or folder nor a dataset that can be loaded ({reason}); "
            "set data.path to a file, a folder or a name on the hub"
        ) from None


def _local_files(path: Path, split: str) -> Sequence[Path]:
    if path.is_file():
        files = [path]
    else:
        files = sorted(file for file in path.iterdir() if file.is_file() and _format(file))
        files = [file for file in files if file.name.startswith(split)] or files
    for file in files:
        refuse_pointer(file)
    formats = {_format(file) for file in files}
    if len(formats) != 1 or formats == {""}:
        raise ValueError(
            f"{path} must hold files of one format of {', '.join(_FORMATS)}; "
            "set data.path to one of its files, or to a folder written by save_to_disk"
        )
    return files


def _format(file: Path) -> str:
    """What ``datasets`` calls the format of a file; empty when it is none of ours."""
    return _FORMATS.get(Path(file.name.removesuffix(".gz")).suffix.lower(), "")


def _rows(table: Any) -> Iterator[dict[str, Any]]:
    for batch in table.iter(batch_size=10_000):
        names = list(batch)
        for values in zip(*(batch[name] for name in names), strict=True):
            yield dict(zip(names, values, strict=True))


def _as_text(value: Any) -> str:
    """The value as text; whole floats lose their ``.0``, which a column with a gap gives to integers."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _as_seconds(value: Any, *, where: str) -> float | None:
    """Seconds since 1970 (or the number itself), or None for a gap."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value.strip())
        except ValueError:
            raise ValueError(f"{where}: the time {value!r} is neither a number nor an ISO 8601 date") from None
    if isinstance(value, datetime.datetime):
        return (value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).timestamp()
    if isinstance(value, datetime.date):
        return datetime.datetime.combine(value, datetime.time(), datetime.UTC).timestamp()
    raise ValueError(f"{where}: the time {value!r} is neither a number nor a date")


def _as_rating(value: Any, where: str) -> float | None:
    """The rating, or None for a gap."""
    try:
        rating = math.nan if value is None or value == "" else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: the rating {value!r} is not a number; set data.rating_column") from None
    return None if math.isnan(rating) else rating


def _as_genres(value: Any) -> tuple[str, ...]:
    names = value.split("|") if isinstance(value, str) else (value or ())
    return tuple(text for name in names if (text := str(name).strip()))
