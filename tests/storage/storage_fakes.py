"""File systems for tests of storage: a folder that stands for an address, and one that fails as a network does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyarrow import fs

from sprec_ray.storage.mirror import Mirror
from sprec_ray.storage.remote import Storage


class Unreliable(fs.FSSpecHandler):
    """Handles a folder; the next ``failures`` writes raise, and every write after ``max_writes`` does."""

    def __init__(self, folder: Path) -> None:
        from fsspec.implementations.local import LocalFileSystem

        super().__init__(LocalFileSystem())
        self.folder, self.failures, self.writes, self.max_writes = folder, 0, [], 10**9

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        if self.failures or len(self.writes) >= self.max_writes:
            self.failures = max(0, self.failures - 1)
            raise OSError("AWS Error NETWORK_CONNECTION during PutObject operation: curlCode: 7; Details: no route")
        self.writes.append(path)
        return super().open_output_stream(path, metadata)


def unreliable(folder: Path) -> tuple[Storage, Unreliable]:
    """A storage in a folder and the handler that makes it fail; it does not pause before it tries again."""
    handler = Unreliable(folder)
    folder.mkdir(exist_ok=True)
    return Storage("s3://bucket/runs", fs.PyFileSystem(handler), str(folder), retry_after_s=(0.0, 0.0)), handler


def mirror_of(storage: Storage, folder: Path) -> Mirror:
    """A mirror of the storage in a folder: one machine."""
    folder.mkdir(exist_ok=True)
    return Mirror(folder, storage)
