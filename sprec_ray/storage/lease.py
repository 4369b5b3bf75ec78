"""One writer per run at an address: a small file that its holder keeps rewriting, and that a second writer watches.

A writer that waits takes the lease when it has not changed for ``STALE_S``, so the clocks of machines need not agree.
Limits: object stores offer pyarrow no compare-and-set, so two writers that start within the same second may both take
it; the one that reads another owner when it looks again gives way. A writer that is cut off from the address for longer
than ``STALE_S`` can lose it to another, and then is told in the log.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sprec_ray.config.run import ConfigError
from sprec_ray.storage.remote import Storage, StorageError

logger = logging.getLogger(__name__)

LEASE = ".lease.json"
RENEW_S = 15.0
"""How often the holder rewrites the lease."""
STALE_S = 60.0
"""After this long without a change the holder counts as dead."""
_LOOK_S = 1.0


@contextmanager
def hold_lease(storage: Storage, name: str, *, renew_s: float = RENEW_S, stale_s: float = STALE_S) -> Iterator[None]:
    """Be the only writer of the run ``name`` inside the block.

    Raises ConfigError when another one is alive; finds that out by watching the lease for at most ``stale_s`` seconds.
    """
    file, owner = f"{name}/{LEASE}", uuid.uuid4().hex
    _wait_for_end(storage, file, stale_s)
    _write(storage, file, owner)
    _refuse_if_alive(storage, file, _read(storage, file), owner)
    stop = threading.Event()
    renewal = threading.Thread(target=_renew, args=(storage, file, owner, renew_s, stop), name="lease", daemon=True)
    renewal.start()
    try:
        yield
    finally:
        stop.set()
        try:
            if (_read(storage, file) or {}).get("owner") == owner:
                storage.delete(file)
        except StorageError as error:
            logger.warning("%s; the next run waits %g s for the lease to end", error, stale_s)


def _wait_for_end(storage: Storage, file: str, stale_s: float) -> None:
    """Return once nobody renews the lease; raise as soon as somebody does."""
    first = _read(storage, file)
    if first is None or _is_dead_here(first):
        return
    logger.warning(
        "%s: a run on %s (process %s) has not said that it ended; watching for %g s whether it still writes",
        *(storage.address, first.get("host"), first.get("pid"), stale_s),
    )
    deadline = time.monotonic() + stale_s
    while time.monotonic() < deadline:
        time.sleep(min(_LOOK_S, stale_s / 10))
        now = _read(storage, file)
        if now is None:
            return
        if now != first:
            _refuse_if_alive(storage, file, now, "")


def _refuse_if_alive(storage: Storage, file: str, lease: dict[str, Any] | None, owner: str) -> None:
    if lease is not None and lease.get("owner") != owner:
        run, holder = file.removesuffix(f"/{LEASE}"), f"process {lease.get('pid')} on {lease.get('host')}"
        raise ConfigError(
            f"another process is running {storage.address}/{run} ({holder}); wait for it or choose another name="
        )


def _is_dead_here(lease: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is no more; process ids of other machines mean nothing."""
    here = (socket.gethostname(), _pid_namespace())
    return (lease.get("host"), lease.get("pid_namespace")) == here and not Path(f"/proc/{lease.get('pid')}").exists()


def _renew(storage: Storage, file: str, owner: str, renew_s: float, stop: threading.Event) -> None:
    while not stop.wait(renew_s):
        try:
            lease = _read(storage, file)
            if lease is not None and lease.get("owner") != owner:
                logger.error("%s now belongs to a process on %s; stop one of the two", file, lease.get("host"))
                return
            if not stop.is_set():
                _write(storage, file, owner)
        except StorageError as error:
            logger.warning("the lease was not renewed: %s", error)


def _write(storage: Storage, file: str, owner: str) -> None:
    place = {"host": socket.gethostname(), "pid_namespace": _pid_namespace(), "pid": os.getpid()}
    lease = {"owner": owner, **place, "time": time.time()}
    storage.write(file, json.dumps(lease).encode())


def _read(storage: Storage, file: str) -> dict[str, Any] | None:
    content = storage.read(file)
    if content is None:
        return None
    try:
        lease = json.loads(content)
    except ValueError:
        return {}
    return lease if isinstance(lease, dict) else {}


def _pid_namespace() -> int:
    """Where process ids have a meaning: containers that share a host's name number their processes on their own."""
    return os.stat("/proc/self/ns/pid").st_ino
