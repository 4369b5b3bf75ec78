"""The main job as a user starts it, killed with SIGKILL and started again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sprec_ray.storage.artifacts import MARKER, PARTIAL, read_json
from tests.end_to_end.conftest import LONG_SFT

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
TIMEOUT_S = 300


def command(tiny_file: Path, output_dir: Path, name: str, *more: str) -> list[str]:
    job = [sys.executable, "-m", "jobs.train_selfplay", str(tiny_file)]
    return [*job, f"output_dir={output_dir}", f"name={name}", *more]


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


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def test_a_killed_job_leaves_no_process_and_goes_on_with_the_same_bits_when_started_again(
    tiny_file: Path, output_dir: Path, long_sft: Path
) -> None:
    """Killed in the middle of the SFT, then in the middle of decoding: what was done is not done again.

    Two helpers of a Ray whose head is dead try for a minute to tell it so: they are waited for at the end.
    """
    folder = output_dir / "killed"
    often = ["training.save_steps=2", LONG_SFT, "decoding.chunk_size=2"]
    state = folder / "sft" / PARTIAL / "state.safetensors"
    chunks = folder / "iteration-0" / "rollouts" / PARTIAL / "chunks"
    below: set[int] = set()
    for reached in (state.exists, lambda: chunks.is_dir() and len(list(chunks.iterdir())) > 2):
        job = subprocess.Popen(
            command(tiny_file, output_dir, "killed", *often),
            cwd=REPOSITORY,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda reached=reached, job=job: reached() or job.poll() is not None)  # type: ignore[misc]
        assert job.poll() is None, "the job ended before it could be killed"
        below |= descendants(job.pid)
        job.send_signal(signal.SIGKILL)
        job.wait()
    kept = {file: file.stat().st_mtime_ns for file in chunks.iterdir()}
    assert kept
    again = subprocess.run(
        command(tiny_file, output_dir, "killed", *often),
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    assert "iteration-0" in again.stdout
    assert f"Report: {folder / 'report.html'}" in again.stdout
    assert read_json(folder / "sft" / MARKER)["summary"]["num_resumed_steps"] > 0
    assert not list(folder.rglob(PARTIAL))
    adapter = Path("iteration-0") / "preference" / "adapter_model.safetensors"
    assert (folder / adapter).read_bytes() == (long_sft / adapter).read_bytes()
    wait_for(lambda: not any(is_running(pid) for pid in below))
