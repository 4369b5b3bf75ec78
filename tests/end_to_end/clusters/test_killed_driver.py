"""The main job as a user starts it, killed with its cluster and alone, and started again."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sprec_ray.storage.artifacts import MARKER, PARTIAL, read_json
from tests.end_to_end.clusters.ray_nodes import kill_tree, ray_nodes
from tests.end_to_end.conftest import LONG_SFT

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[3]
TIMEOUT_S = 300
RAY_HELPER = re.compile("DashboardAgent|RuntimeEnvAgent|dashboard/agent.py|runtime_env/agent")


def environment() -> dict[str, str]:
    """Without RAY_ADDRESS, so that the job starts a Ray of its own and its death must end that too."""
    return {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}


def descendants(pid: int) -> set[int]:
    """The process ids below a process."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found: set[int] = set()
    frontier = {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier} - found
        found |= frontier
    return found


def title(pid: int) -> str:
    """What a process calls itself."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: Callable[[], bool], job: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert job is None or job.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def test_a_run_goes_on_after_its_cluster_was_lost_and_again_after_its_driver_was_killed(
    tiny_file: Path, output_dir: Path, long_sft: Path, tmp_path: Path
) -> None:
    """The head dies in the middle of the SFT, and the driver with it, as at a loss of power. Then, on a Ray of its own,

    the driver is killed in the middle of decoding: no process stays, and what was done is not done again.
    Two helpers of a Ray whose head is dead try for a minute to tell it so; that they end is not waited for.
    """
    folder = output_dir / "killed"
    often = ["training.save_steps=2", *LONG_SFT, "decoding.chunk_size=2"]
    state = folder / "sft" / PARTIAL / "state.safetensors"
    chunks = folder / "iteration-0" / "rollouts" / PARTIAL / "chunks"
    arguments = [str(tiny_file), f"output_dir={output_dir}", "name=killed", *often]
    with ray_nodes("--num-cpus=3") as cluster:
        cluster.wait_for(1)
        job = cluster.begin("jobs.train_selfplay", *arguments, log=tmp_path / "log")
        wait_for(state.exists, job)
        cluster.kill(cluster.nodes[0])
        kill_tree(job.pid)
        job.wait()
    job = subprocess.Popen(
        [sys.executable, "-m", "jobs.train_selfplay", *arguments],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: chunks.is_dir() and len(list(chunks.iterdir())) > 2, job)
    assert read_json(folder / "sft" / MARKER)["summary"]["num_resumed_steps"] > 0
    below = {pid for pid in descendants(job.pid) if not RAY_HELPER.search(title(pid))}
    job.send_signal(signal.SIGKILL)
    job.wait()
    kept = {file: file.stat().st_mtime_ns for file in chunks.iterdir()}
    assert kept
    again = subprocess.run(
        [sys.executable, "-m", "jobs.train_selfplay", *arguments],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    assert "iteration-0" in again.stdout
    assert f"Report: {folder / 'report.html'}" in again.stdout
    assert not list(folder.rglob(PARTIAL))
    adapter = Path("iteration-0") / "preference" / "adapter_model.safetensors"
    assert (folder / adapter).read_bytes() == (long_sft / adapter).read_bytes()
    wait_for(lambda: not any(is_running(pid) for pid in below))
