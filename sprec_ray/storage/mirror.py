"""The local working folder of an ``output_dir`` that is an address: pulled from it at the start, pushed as stages end.

A run computes in local files whatever ``output_dir`` is. For an address they lie in a mirror of it, and an index keeps
which version of each file both sides had when they were last seen equal. What changed at the address since then is
taken from it, else what changed here is pushed; so another machine continues a run, and a run whose push failed pushes
what is missing when it is started again.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sprec_ray.config.addresses import is_remote, lasting
from sprec_ray.storage.artifacts import MARKER, PARTIAL, read_json, write_json
from sprec_ray.storage.lease import hold_lease
from sprec_ray.storage.remote import RemoteFile, Storage, open_storage

NOT_MIRRORED = "ray-train"
"""What Ray Train keeps for itself in a run's folder."""

_Known = dict[str, tuple[int, ...]]
"""Per file: size and modification time here, size and modification time at the address."""


def working_folder(output_dir: str) -> Path:
    """The local folder of all runs of an ``output_dir``: itself, or the mirror of an address.

    Mirrors lie below ``$SPREC_RAY_HOME``, else ``~/.cache/sprec_ray``.
    """
    if not is_remote(output_dir):
        return lasting(output_dir)
    home = Path(os.environ.get("SPREC_RAY_HOME") or Path.home() / ".cache" / "sprec_ray").expanduser()
    return home / hashlib.sha256(output_dir.rstrip("/").encode()).hexdigest()[:16]


class Mirror:
    """Keeps local folders equal to those at the address; does nothing where ``output_dir`` is a local folder.

    Names are relative to ``output_dir``: a run, a stage of it, or ``cache/model-<key>``. Its methods may be called from
    several threads. Raises StorageError when the address cannot be reached, with the local files as they were.
    """

    def __init__(self, folder: Path, storage: Storage | None) -> None:
        self.folder, self.storage = folder, storage
        self._lock = threading.Lock()

    @contextmanager
    def opened(self, name: str) -> Iterator[None]:
        """Continue the run ``name`` from the address, as its only writer; what the block leaves is pushed.

        Raises ConfigError when the address cannot be written or another process writes there.
        """
        if self.storage is None:
            yield
            return
        self.storage.check()
        with hold_lease(self.storage, name):
            self.pull(name)
            yield
            self.push(self.folder / name)

    def pull(self, name: str) -> None:
        """Make a local folder equal to the one at the address, but for what is new or changed only here."""
        if self.storage is None:
            return
        with self._lock:
            known, local, remote = self._known(name), self._local(name), self.storage.files(name)
            finished = _stages(remote)

            def is_behind(file: str) -> bool:
                if file not in local or known.get(file, ())[2:] != remote[file]:
                    return True
                # What is finished never changes, so what differs here was damaged here.
                return known[file][:2] != local[file] and file.startswith(finished)

            changed = [file for file in remote if not _is_hidden(file) and is_behind(file)]
            gone = [file for file in local.keys() - remote.keys() if file in known or file.startswith(_stages(changed))]
            try:
                for file in sorted(gone, key=_marker_first):
                    (self.folder / file).unlink()
                    known.pop(file, None)
                for file in sorted(changed, key=_marker_first):  # what is replaced is no finished stage meanwhile
                    if file.endswith(MARKER):
                        (self.folder / file).unlink(missing_ok=True)
                for file in sorted(changed, key=_marker_last):
                    self.storage.download(file, self.folder / file)
                    known[file] = (*_version(self.folder / file), *remote[file])
            finally:
                self._remember(name, known)

    def push(self, path: Path) -> None:
        """Make the folder at the address equal to a local one: new and changed files, then the markers.

        Of an unfinished stage below it only what is in ``partial`` is pushed: other files may be half written.
        """
        if self.storage is None:
            return
        with self._lock:
            name = str(path.relative_to(self.folder))
            known, local = self._known(name), self._local(name)
            stages = _stages(local)
            num_parts = name.count("/") + 1
            try:
                for file in sorted(local, key=_marker_last):
                    whole = file.startswith(stages) or file.count("/") == num_parts or f"/{PARTIAL}/" in file
                    if whole and known.get(file, ())[:2] != local[file]:
                        self.storage.upload(self.folder / file, file)
                        known[file] = (*local[file], *(self.storage.version(file) or RemoteFile(-1, 0)))
                for file in sorted(known.keys() - local.keys(), key=_marker_first):
                    if file.startswith(stages):  # state of a stage that is finished now
                        self.storage.delete(file)
                        del known[file]
            finally:
                self._remember(name, known)

    def _local(self, name: str) -> dict[str, tuple[int, int]]:
        return {
            file: _version(path)
            for path in (self.folder / name).rglob("*")
            if path.is_file() and not _is_hidden(file := str(path.relative_to(self.folder)))
        }

    def _index(self, name: str) -> Path:
        parts = name.split("/")
        return self.folder / ".index" / ("-".join(parts[:2] if parts[0] == "cache" else parts[:1]) + ".json")

    def _known(self, name: str) -> _Known:
        """The index's entries below a folder."""
        index = self._index(name)
        entries = read_json(index) if index.is_file() else {}
        return {file: tuple(entry) for file, entry in entries.items() if file.startswith(f"{name}/")}

    def _remember(self, name: str, known: _Known) -> None:
        index = self._index(name)
        entries = read_json(index) if index.is_file() else {}
        others = {file: entry for file, entry in entries.items() if not file.startswith(f"{name}/")}
        write_json(index, {**others, **known})


def open_mirror(output_dir: str) -> Mirror:
    """The mirror of an ``output_dir``. Raises ConfigError for an address that cannot be opened."""
    storage = open_storage(output_dir) if is_remote(output_dir) else None
    return Mirror(working_folder(output_dir).resolve(), storage)


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _stages(files: Iterable[str]) -> tuple[str, ...]:
    """The folders that hold a marker, each with a slash at its end."""
    return tuple(file.removesuffix(MARKER) for file in files if file.endswith(f"/{MARKER}"))


def _is_hidden(file: str) -> bool:
    """Locks, leases and files that are being written, and what Ray Train keeps."""
    parts = file.split("/")
    return any(part.startswith(".") for part in parts) or parts[1:2] == [NOT_MIRRORED]


def _marker_last(file: str) -> tuple[bool, str]:
    return file.endswith(MARKER), file


def _marker_first(file: str) -> tuple[bool, str]:
    return not file.endswith(MARKER), file
