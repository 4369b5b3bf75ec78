from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from sprec_ray.config.run import ConfigError
from sprec_ray.storage.lease import LEASE, hold_lease
from tests.storage.storage_fakes import unreliable

ELSEWHERE = {"owner": "another", "host": "elsewhere", "pid_namespace": 1, "pid": 7, "time": 0.0}


def test_a_second_writer_is_refused_while_the_first_one_lives(tmp_path: Path) -> None:
    storage, _ = unreliable(tmp_path / "bucket")
    refused = pytest.raises(
        ConfigError, match=r"another process is running s3://bucket/runs/demo \(process \d+ on .*\)"
    )
    with hold_lease(storage, "demo", renew_s=0.05), refused, hold_lease(storage, "demo", stale_s=5):
        pass
    with hold_lease(storage, "demo"):  # the first one has ended
        assert (tmp_path / "bucket" / "demo" / LEASE).exists()
    assert not (tmp_path / "bucket" / "demo" / LEASE).exists()


def test_a_lease_that_nobody_renews_is_taken(tmp_path: Path) -> None:
    storage, _ = unreliable(tmp_path / "bucket")
    storage.write(f"demo/{LEASE}", json.dumps(ELSEWHERE).encode())
    started = time.monotonic()
    with hold_lease(storage, "demo", stale_s=0.3):
        assert 0.3 <= time.monotonic() - started < 5


def test_a_dead_process_of_this_machine_holds_nothing(tmp_path: Path) -> None:
    storage, _ = unreliable(tmp_path / "bucket")
    with hold_lease(storage, "demo"):
        mine = json.loads(storage.read(f"demo/{LEASE}") or b"")
    storage.write(f"demo/{LEASE}", json.dumps({**mine, "pid": 2**22 + 1}).encode())
    started = time.monotonic()
    with hold_lease(storage, "demo", stale_s=60):
        assert time.monotonic() - started < 5


def test_a_writer_that_ends_while_it_is_watched_is_succeeded(tmp_path: Path) -> None:
    storage, _ = unreliable(tmp_path / "bucket")
    storage.write(f"demo/{LEASE}", json.dumps(ELSEWHERE).encode())
    threading.Timer(0.3, storage.delete, [f"demo/{LEASE}"]).start()
    started = time.monotonic()
    with hold_lease(storage, "demo", stale_s=30):
        assert time.monotonic() - started < 10
