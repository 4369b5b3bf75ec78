"""Files on their way to another machine: through Ray's object store, so that no path need be shared.

The run directory is the driver's. Workers and decoders get what they read as parcels: on the driver's machine they open
its paths, elsewhere copies.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from sprec_ray.types import AdapterCheckpoint

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
"""The files of a PEFT adapter's folder that make the policy."""

_KEEP_S = 24 * 3600.0
"""Copies on other machines that nothing has opened for so long are removed."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A file or folder of the driver's machine, with its bytes in the object store for every other machine."""

    path: str
    node: str
    """Ray's id of the driver's machine."""
    key: str
    """A hash of names and contents."""
    content: tuple[Any]
    """The object that holds them, in a tuple so that a call does not fetch it."""
    is_file: bool

    def local(self) -> str:
        """The path on this machine: ``path`` itself on the driver's, elsewhere a copy that is made once."""
        if ray.get_runtime_context().get_node_id() == self.node:
            return self.path
        cache = Path(tempfile.gettempdir()) / f"sprec-ray-{os.getuid()}"  # nobody else may write what is trusted here
        cache.mkdir(mode=0o700, exist_ok=True)
        place = cache / self.key
        if not place.exists():
            _remove_old(cache)
            aside = cache / f".{self.key}-{uuid.uuid4().hex[:8]}"
            aside.mkdir(parents=True)
            for name, content in ray.get(self.content[0]).items():
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                (aside / name).write_bytes(content)
            try:
                aside.rename(place)
            except OSError:  # another process of this machine was first
                shutil.rmtree(aside)
        place.touch()
        return str(place / Path(self.path).name if self.is_file else place)


@dataclass(frozen=True, slots=True)
class SentAdapter:
    """An adapter of the driver's machine on its way to a decoder."""

    checkpoint: AdapterCheckpoint
    parcel: Parcel

    def local(self) -> AdapterCheckpoint:
        """The adapter on this machine."""
        return AdapterCheckpoint(path=self.parcel.local(), version=self.checkpoint.version)


def send(adapter: AdapterCheckpoint | None) -> SentAdapter | None:
    """An adapter for decoders on any machine; None is the base model. Raises ValueError when it is not on disk."""
    if adapter is None:
        return None
    missing = [name for name in ADAPTER if not (Path(adapter.path) / name).is_file()]
    if missing:
        raise ValueError(f"{adapter.path} is not an adapter: it holds no {missing[0]}")
    return SentAdapter(adapter, pack(adapter.path, ADAPTER))


def pack(path: str | Path, names: Sequence[str] = ()) -> Parcel:
    """A parcel of a file, of a whole folder, or of a folder's files of these names."""
    path = Path(path)
    if path.is_file():
        content = {path.name: path.read_bytes()}
    else:
        files = [path / name for name in names] or sorted(file for file in path.rglob("*") if file.is_file())
        content = {str(file.relative_to(path)): file.read_bytes() for file in files}
    digest = hashlib.sha256()
    for name, data in content.items():
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    node = ray.get_runtime_context().get_node_id()
    return Parcel(str(path), node, digest.hexdigest()[:32], (ray.put(content),), path.is_file())


def local_paths(parcels: tuple[Parcel, ...]) -> Callable[[Any], Any]:
    """Where this machine has what the driver has at a path."""
    local = {parcel.path: parcel.local() for parcel in parcels}
    return lambda path: local.get(path, path)


def read_folder(path: str | Path) -> dict[str, bytes]:
    """The files below a folder by their relative names: what a worker sends back."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(Path(path).rglob("*")) if file.is_file()}


def _remove_old(cache: Path) -> None:
    for place in cache.glob("*"):
        if time.time() - place.stat().st_mtime > _KEEP_S:
            shutil.rmtree(place, ignore_errors=True)
