"""The run directory: stage folders, atomic writes, completion markers, and rows read back as types."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from sprec_ray.types import EvalResult, Hypothesis, Rollout

Row = TypeVar("Row")

MARKER = "_SUCCESS.json"

PARTIAL = "partial"
"""Folder of a stage that holds what an interrupted stage has done; it is gone when the stage is finished."""

ROWS_FILE = "rows.json"
"""Of an evaluation whose metrics are means over rows: ``example_ids`` and, by metric, what every row ``adds``."""


class ArtifactError(ValueError):
    """A run directory that cannot be used as it is; the message names the file and the remedy."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """A folder that one stage fills. Its marker is written last and lists every file with its size in bytes."""

    path: Path

    @property
    def is_finished(self) -> bool:
        """Whether the stage ran to its end. Raises ArtifactError when it did and a file is missing or truncated."""
        marker = self.path / MARKER
        if not marker.exists():
            return False
        content = read_json(marker)
        if not isinstance(content, dict) or not {"files", "summary"} <= content.keys():
            raise ArtifactError(f"{marker} is damaged; delete {self.path} and the stages after it, and run again")
        for name, size in content["files"].items():
            file = self.path / name
            if not file.is_file() or file.stat().st_size != size:
                raise ArtifactError(
                    f"{file} is missing or truncated (expected {size} bytes); delete {self.path} and the stages "
                    "after it, and run the same command again"
                )
        return True

    def start(self) -> Stage:
        """The stage with an empty folder but for ``partial``: what else an interrupted run left there is removed."""
        self.path.mkdir(parents=True, exist_ok=True)
        for entry in self.path.iterdir():
            if entry.is_dir() and entry.name != PARTIAL:
                shutil.rmtree(entry)
            elif not entry.is_dir():
                entry.unlink()
        return self

    @property
    def partial(self) -> Path:
        """The folder of what an interrupted stage has done, which ``start`` leaves alone and ``finish`` removes."""
        return self.path / PARTIAL

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Mark the stage as finished and keep ``summary`` (counts, metrics, seconds) in the marker."""
        files = {
            str(file.relative_to(self.path)): file.stat().st_size
            for file in sorted(self.path.rglob("*"))
            if file.is_file() and file.name != MARKER and self.partial not in file.parents
        }
        write_json(self.path / MARKER, {"files": files, "summary": dict(summary)})
        if self.partial.exists():  # last: until the marker is there it may be needed
            shutil.rmtree(self.partial)

    @property
    def summary(self) -> dict[str, Any]:
        """What ``finish`` was given."""
        summary: dict[str, Any] = read_json(self.path / MARKER)["summary"]
        return summary


def take_lock(path: Path, *, wait: bool) -> IO[str] | None:
    """Hold a lock file until what is returned is closed; None when another process holds it and ``wait`` is False.

    The operating system releases the lock of a process that dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        return None
    return file


@contextmanager
def locked(path: Path, *, refusal: str = "") -> Iterator[None]:
    """Hold a lock file inside the block, waiting for another process that holds it.

    With ``refusal`` nothing is waited for: ArtifactError says it.
    """
    file = take_lock(path, wait=not refusal)
    if file is None:
        raise ArtifactError(refusal)
    with file:
        yield


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: a crash leaves the previous content."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a crash or a full disk leaves the previous content.

    Raises OSError naming the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        remedy = "what was written before is kept: mend that and run the same command again"
        raise OSError(error.errno, f"{error.strerror or error} ({remedy})", str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished_writes(folder: Path) -> None:
    """Remove what writes have left below a folder whose process was killed before it could rename its file."""
    for file in folder.rglob(".*"):
        if re.fullmatch(r"\..+\.[0-9a-f]{8}", file.name) and file.is_file():
            file.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, readable by people. An undefined number (NaN) is written as null."""
    write_text(path, json.dumps(_without_nan(value), ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_added(folder: Path, example_ids: Sequence[str], adds: Mapping[str, Iterable[float]]) -> None:
    """Write what every row of an evaluation adds to each metric, a mapping of arrays [B], as ``ROWS_FILE``."""
    values = {name: [float(value) for value in added_B] for name, added_B in adds.items()}
    write_json(folder / ROWS_FILE, {"example_ids": list(example_ids), "adds": values})


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ArtifactError naming the file and the place when it is not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist") from None
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged ({error}); delete {path.parent} and run again") from None


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Write dataclass rows as JSON lines, atomically."""
    write_text(path, "".join(json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    """The rows ``write_rows`` wrote. Titles may hold U+2028: lines end at a line feed only."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is damaged ({error}); delete the folder and run again") from None
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line:
            try:
                rows.append(row_type(**{key: _frozen(value) for key, value in dict(json.loads(line)).items()}))
            except (ValueError, TypeError) as error:
                raise ArtifactError(
                    f"{path}, line {number} is damaged ({error}); delete {path.parent} and run again"
                ) from None
    return rows


def read_rollouts(path: Path) -> list[Rollout]:
    """The rollouts ``write_rows`` wrote."""
    rows = read_rows(path, Rollout)
    try:
        return [
            dataclasses.replace(row, hypotheses=tuple(_hypothesis(values) for values in row.hypotheses)) for row in rows
        ]
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); delete the folder and run again") from None


def _hypothesis(values: Any) -> Hypothesis:
    return Hypothesis(**{key: _frozen(value) for key, value in dict(values).items()})


def as_eval_result(values: Mapping[str, Any]) -> EvalResult:
    """The EvalResult whose ``dataclasses.asdict`` was written as JSON."""
    metrics = {name: math.nan if value is None else value for name, value in values["metrics"].items()}
    return EvalResult(**{key: _frozen(value) for key, value in {**values, "metrics": metrics}.items()})


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(entry) for entry in value) if isinstance(value, list) else value
