"""The main job on a cluster that is already running, submitted as a user submits it."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
TIMEOUT_S = 400


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    """A head node of its own, with a token; yields the environment of its users."""
    folder = tempfile.mkdtemp(prefix="ray-")  # short: Ray puts sockets in it
    dashboard = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    head = subprocess.Popen(
        [
            *(RAY, "start", "--head", "--block", f"--port={free_port()}", "--num-cpus=3", f"--temp-dir={folder}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--disable-usage-stats"),
            f"--dashboard-agent-listen-port={free_port()}",
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    yield {**environment, "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    head.send_signal(signal.SIGTERM)
    try:
        head.wait(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def submit(cluster: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    """``ray job submit`` from the repository, tried again while the job server starts."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        done = subprocess.run(
            [RAY, "job", "submit", "--working-dir", ".", "--", *command],
            cwd=REPOSITORY,
            env=cluster,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        not_up = "Failed to connect to Ray" in done.stderr or "No available agent" in done.stderr
        if not not_up or time.monotonic() > deadline:
            return done
        time.sleep(2)


def test_the_main_job_runs_under_ray_job_submit_and_a_wrong_token_is_refused(
    cluster: dict[str, str], tiny_file: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "jobs.train_selfplay", str(tiny_file), f"output_dir={tmp_path}", "name=job"]
    done = submit(cluster, *command)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "succeeded" in done.stdout + done.stderr
    assert (tmp_path / "job" / "report.html").is_file()
    refused = submit({**cluster, "RAY_AUTH_TOKEN": "0" * 32}, *command)
    assert refused.returncode != 0
    assert "nauthorized" in refused.stdout + refused.stderr or "nvalid" in refused.stdout + refused.stderr
