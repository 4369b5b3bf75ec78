"""A cluster whose head node is lost in the middle of a run, started again, and given the same command."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from sprec_ray.storage.artifacts import MARKER, PARTIAL, read_json
from tests.end_to_end.conftest import LONG_SFT
from tests.end_to_end.ray_nodes import kill_tree, ray_nodes

pytestmark = pytest.mark.slow

SETTINGS = ("training.save_steps=2", LONG_SFT, "evaluation.base=false")
ADAPTER = Path("iteration-0") / "preference" / "adapter_model.safetensors"


def test_a_run_goes_on_after_the_head_was_restarted(
    tiny_file: Path, output_dir: Path, long_sft: Path, tmp_path: Path
) -> None:
    """The head dies in the middle of the SFT, with the driver on the same machine, as at a loss of power."""
    arguments = [str(tiny_file), f"output_dir={output_dir}", "name=head-lost", *SETTINGS]
    folder = output_dir / "head-lost"
    state = folder / "sft" / PARTIAL / "state.safetensors"
    with ray_nodes("--num-cpus=3") as cluster:
        cluster.wait_for(1)
        job = cluster.begin("jobs.train_selfplay", *arguments, log=tmp_path / "log")
        wait_for(state, job)
        cluster.kill(cluster.nodes[0])
        kill_tree(job.pid)
        job.wait()
    with ray_nodes("--num-cpus=3") as cluster:
        cluster.wait_for(1)
        again = cluster.run("jobs.train_selfplay", *arguments)
        assert again.returncode == 0, again.stderr[-3000:]
    assert read_json(folder / "sft" / MARKER)["summary"]["num_resumed_steps"] > 0
    assert (folder / ADAPTER).read_bytes() == (long_sft / ADAPTER).read_bytes()


def wait_for(file: Path, job: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while not file.exists():
        assert job.poll() is None, "the job ended before the head could be lost"
        assert time.monotonic() < deadline, f"{file} was not written"
        time.sleep(0.05)
