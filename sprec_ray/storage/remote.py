"""Files at an address, through ``pyarrow.fs`` (S3, Google Cloud Storage, HDFS): every failure is one sentence."""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pyarrow import fs

from sprec_ray.config.addresses import without_options
from sprec_ray.config.run import ConfigError

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

RETRY_AFTER_S = (1.0, 5.0, 20.0)
"""Pauses before a read or write is tried again; pyarrow itself has tried for seconds before each."""
_CHUNK_BYTES = 2**22

_REMEDIES = {
    "NO_SUCH_BUCKET": "create the bucket or correct its name",
    "ACCESS_DENIED": "set credentials that may read, write and delete there (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)",
    "INVALID_ACCESS_KEY": "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "SIGNATURE": "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "NETWORK_CONNECTION": "check the network, the region and endpoint_override",
    "libjvm": "install Java and Hadoop's client, and set JAVA_HOME, HADOOP_HOME and CLASSPATH",
}


class StorageError(OSError):
    """The address could not be read or written; the message is one sentence with the remedy."""


class RemoteFile(NamedTuple):
    """What tells one version of a file at the address from another."""

    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Storage:
    """A folder at an address. Names are relative to it; an object store writes each file whole or not at all."""

    address: str
    """As it is shown: without options."""
    filesystem: Any
    base: str
    retry_after_s: tuple[float, ...] = RETRY_AFTER_S

    def check(self) -> None:
        """Write and delete a small file. Raises ConfigError, naming the remedy, where that is not possible."""
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            self._make_folder_of(probe)
            with self.filesystem.open_output_stream(f"{self.base}/{probe}") as stream:
                stream.write(b"sprec_ray may write here\n")
            self.filesystem.delete_file(f"{self.base}/{probe}")
        except OSError as error:
            raise ConfigError(f"output_dir={self.address} cannot be used ({_cause(error)}); {_remedy(error)}") from None

    def files(self, name: str) -> dict[str, RemoteFile]:
        """All files below a folder, and below its subfolders."""
        selector = fs.FileSelector(f"{self.base}/{name}", recursive=True, allow_not_found=True)
        entries = self._retried(f"list {name}", lambda: self.filesystem.get_file_info(selector))
        start = len(self.base) + 1
        return {
            entry.path[start:]: RemoteFile(entry.size, entry.mtime_ns or 0)
            for entry in entries
            if entry.type == fs.FileType.File
        }

    def version(self, name: str) -> RemoteFile | None:
        """The present version of a file; None where there is none."""
        entry = self._retried(f"look at {name}", lambda: self.filesystem.get_file_info(f"{self.base}/{name}"))
        return RemoteFile(entry.size, entry.mtime_ns or 0) if entry.type == fs.FileType.File else None

    def download(self, name: str, to: Path) -> None:
        """Copy a file to this machine, whole or not at all."""
        to.parent.mkdir(parents=True, exist_ok=True)
        aside = to.with_name(f".{to.name}.{uuid.uuid4().hex[:8]}")

        def copy() -> None:
            with self.filesystem.open_input_stream(f"{self.base}/{name}") as stream, aside.open("wb") as file:
                shutil.copyfileobj(stream, file, _CHUNK_BYTES)
                file.flush()
                os.fsync(file.fileno())

        try:
            self._retried(f"read {name}", copy)
            aside.replace(to)
        finally:
            aside.unlink(missing_ok=True)

    def upload(self, file: Path, name: str) -> None:
        """Copy a file to the address."""

        def copy() -> None:
            self._make_folder_of(name)
            with file.open("rb") as source, self.filesystem.open_output_stream(f"{self.base}/{name}") as stream:
                shutil.copyfileobj(source, stream, _CHUNK_BYTES)

        self._retried(f"write {name}", copy)

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None where there is none."""

        def content() -> bytes | None:
            try:
                with self.filesystem.open_input_stream(f"{self.base}/{name}") as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

        return self._retried(f"read {name}", content)

    def write(self, name: str, content: bytes) -> None:
        """Write a small file."""

        def put() -> None:
            self._make_folder_of(name)
            with self.filesystem.open_output_stream(f"{self.base}/{name}") as stream:
                stream.write(content)

        self._retried(f"write {name}", put)

    def delete(self, name: str) -> None:
        """Delete a file; nothing happens where there is none."""

        def remove() -> None:
            try:
                self.filesystem.delete_file(f"{self.base}/{name}")
            except FileNotFoundError:
                return

        self._retried(f"delete {name}", remove)

    def _make_folder_of(self, name: str) -> None:
        """Object stores have no folders; other file systems want one before a file is written into it."""
        if self.filesystem.type_name not in {"s3", "gcs", "abfs"}:
            self.filesystem.create_dir(f"{self.base}/{name}".rpartition("/")[0], recursive=True)

    def _retried(self, what: str, call: Callable[[], Answer]) -> Answer:
        for pause_s in self.retry_after_s:
            try:
                return call()
            except OSError as error:
                logger.warning(
                    "%s: could not %s (%s); trying again in %g s", self.address, what, _cause(error), pause_s
                )
                time.sleep(pause_s)
        try:
            return call()
        except OSError as error:
            raise StorageError(f"{self.address}: could not {what} ({_cause(error)}); {_remedy(error)}") from None


def open_storage(address: str) -> Storage:
    """The storage at an address such as ``s3://bucket/prefix?endpoint_override=host:9000&scheme=http``.

    Credentials come from the environment, as pyarrow finds them. Raises ConfigError for an address it cannot open.
    """
    shown = without_options(address)
    try:
        filesystem, base = fs.FileSystem.from_uri(address)
    except ValueError as error:
        raise ConfigError(
            f"output_dir={shown} is no address that pyarrow.fs knows ({_cause(error)}); give a folder, s3://BUCKET/PREFIX,"
            " gs://BUCKET/PREFIX or hdfs://HOST/PATH, with spaces written as %20"
        ) from None
    except OSError as error:
        raise ConfigError(f"output_dir={shown} cannot be opened ({_cause(error)}); {_remedy(error)}") from None
    return Storage(shown, filesystem, base.rstrip("/"))


def _cause(error: Exception) -> str:
    """What a file system says, in one line and without the number of the request or the address's options."""
    line = " ".join(str(error).split()).partition(" (Request ID")[0].partition("dlopen(")[0]
    return line.partition("; Details:")[0].partition("URI: ")[0].strip().rstrip(".:") or type(error).__name__


def _remedy(error: Exception) -> str:
    text = str(error)
    return next(
        (remedy for sign, remedy in _REMEDIES.items() if sign in text),
        "check the address, your credentials and the network",
    )
