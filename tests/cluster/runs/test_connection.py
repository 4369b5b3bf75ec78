"""The Ray that a run starts itself is closed to others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

OWN = """
import os, signal, sys
import ray
from sprec_ray.cluster.runs.connection import init_ray

signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(7))
assert init_ray(num_cpus=1)
node = ray._private.worker._global_node
print(node.gcs_address, node.webui_url or "no dashboard", sep="|", flush=True)
os.kill(os.getpid(), signal.SIGTERM) if sys.stdin.readline() else None
"""
OTHER = "import ray, sys; ray.init(address=sys.argv[1]); print(ray.cluster_resources())"


def environment(home: Path, **variables: str) -> dict[str, str]:
    """Of a user with a home directory of their own and no settings of Ray."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {**kept, "HOME": str(home), **variables}


def test_a_ray_of_its_own_takes_nobody_without_its_token_and_leaves_sigterm_to_the_job(tmp_path: Path) -> None:
    own = subprocess.Popen(
        [sys.executable, "-c", OWN],
        env=environment(tmp_path / "own"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert own.stdout is not None
    address, dashboard = own.stdout.readline().strip().split("|")
    assert dashboard == "no dashboard"
    command = [sys.executable, "-c", OTHER, address]
    stranger = environment(tmp_path / "stranger", RAY_AUTH_MODE="disabled")
    refused = subprocess.run(command, env=stranger, capture_output=True, text=True, check=False, timeout=120)
    assert refused.returncode != 0
    assert "nauthenticated" in refused.stderr or "nauthorized" in refused.stderr or "token" in refused.stderr
    own.communicate("stop\n", timeout=60)
    assert own.returncode == 7
