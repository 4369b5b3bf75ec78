"""Raw files as text: found with or without ``.gz``, decoded with a stated encoding, split at line feeds only."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sprec_ray.config.data import DataConfig

_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"


def data_folder(config: DataConfig) -> Path:
    """The folder ``data.path``. Raises ValueError when it is not set or not a folder."""
    if not config.path:
        raise ValueError(f"data.source={config.source} needs data.path=FOLDER")
    folder = Path(config.path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; set data.path=FOLDER to the folder of the raw files")
    return folder


def find_file(folder: Path, *names: str) -> Path | None:
    """The first of ``names`` that the folder holds, as it is or with ``.gz``; None when it holds none."""
    for name in names:
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    return None


def require_file(folder: Path, *names: str) -> Path:
    """``find_file``, with a ValueError that names the folder and the remedy when there is none."""
    path = find_file(folder, *names)
    if path is None:
        raise ValueError(f"{folder / names[0]}[.gz] does not exist; set data.path=FOLDER to the folder that holds it")
    return path


def refuse_pointer(path: Path) -> None:
    """Raise ValueError when a Git-LFS pointer sits where the data should be."""
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ValueError(f"{path} is a Git-LFS pointer, not the data; run `git lfs pull` in its repository")


def read_text(path: Path, *, encoding: str = "utf-8-sig") -> str:
    """The text of a plain or gzip-compressed file.

    Raises ValueError naming the file and the remedy when it is missing, empty, a Git-LFS pointer, damaged, or not in
    ``encoding`` (``utf-8-sig`` is UTF-8, with or without a byte order mark).
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; set data.path=FOLDER to the folder that holds it") from None
    if content.startswith(_LFS_POINTER):
        raise ValueError(f"{path} is a Git-LFS pointer, not the data; run `git lfs pull` in its repository")
    if path.suffix == ".gz" and content:
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole gzip file ({error}); fetch it again") from None
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line} is not {encoding} ({error.reason}); convert or fetch it again") from None
    if not text.strip():
        raise ValueError(f"{path} is empty; fetch it again or set data.path=FOLDER to another folder")
    return text


def numbered_lines(path: Path, *, encoding: str = "utf-8-sig") -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and the lines that are not blank, without their line feed (or carriage return and feed).

    Lines end at a line feed only: titles hold U+0085 and U+2028, at which ``str.splitlines`` would cut them.
    """
    for number, line in enumerate(read_text(path, encoding=encoding).split("\n"), start=1):
        if line.strip():
            yield number, line.removesuffix("\r")


def split_fields(line: str, separator: str, *, at_least: int, where: str) -> list[str]:
    """The fields of a line. Raises ValueError naming ``where`` when there are fewer than ``at_least``."""
    fields = line.split(separator)
    if len(fields) < at_least:
        raise ValueError(
            f"{where}: expected {at_least} fields separated by {separator!r}, found {len(fields)}; mend the line"
        )
    return fields


def read_json_value(path: Path) -> Any:
    """The one JSON value of a file. Raises ValueError naming file and line."""
    values = list(_json_values(path))
    if len(values) != 1:
        raise ValueError(f"{path} holds {len(values)} JSON values; expected one")
    return values[0][1]


def read_json_rows(path: Path, *, columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The objects of a file that is a JSON list, JSON lines, or objects one after another without a separator.

    Raises ValueError naming file and place for what is not JSON, not an object, or has no text under a column.
    """
    values = list(_json_values(path))
    if len(values) == 1 and isinstance(values[0][1], list):
        numbered = [(f"row {number}", value) for number, value in enumerate(values[0][1], start=1)]
    else:
        numbered = [(f"line {line}", value) for line, value in values]
    if not numbered:
        raise ValueError(f"{path} is empty; fetch it again or set data.path=FOLDER to another folder")
    for place, row in numbered:
        if not isinstance(row, dict):
            raise ValueError(f"{path}, {place}: expected an object, found {type(row).__name__}")
        for column in columns:
            if not isinstance(row.get(column), str):
                raise ValueError(
                    f"{path}, {place}: no text under {column!r}; found the keys {', '.join(map(str, row))}"
                )
    return [row for _, row in numbered]


def _json_values(path: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers and the JSON values that start there."""
    text = read_text(path)
    decoder = json.JSONDecoder()
    position, line = 0, 1
    while True:
        start = position
        while position < len(text) and text[position] in " \t\r\n":
            position += 1
        line += text.count("\n", start, position)
        if position == len(text):
            return
        try:
            value, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            line_of_error = text.count("\n", 0, error.pos) + 1
            raise ValueError(
                f"{path}, line {line_of_error} is not JSON ({error.msg}); mend or fetch the file again"
            ) from None
        yield line, value
        line += text.count("\n", position, end)
        position = end
