"""The jobs on a cluster that is already running, submitted as users submit them."""

import json
import os
import re
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

from sprec_ray.cluster.runs.run import RunOutcome
from sprec_ray.storage.artifacts import MARKER

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[3]
RAY = str(Path(sys.executable).with_name("ray"))
TIMEOUT_S = 400
RAY_DATA_KEEPS = ("_StatsActor", "_AutoscalingCoordinatorActor")
"""Actors without resources that Ray Data starts once per cluster and leaves for whoever uses it next."""
ADAPTER = Path("iteration-0") / "preference" / "adapter_model.safetensors"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home directory of the cluster's user."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def cluster(home: Path) -> Iterator[dict[str, str]]:
    """A head node of its own, with a token; yields the environment of its users."""
    folder = tempfile.mkdtemp(prefix="ray-")  # short: Ray puts sockets in it
    dashboard = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "HOME": str(home)}
    environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"
    environment |= {name: secrets.token_hex(16) for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY")}
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


def ray_cli(cluster: dict[str, str], *arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """A command of ``ray``, tried again while the job server starts."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        done = subprocess.run(
            [RAY, *arguments],
            cwd=cwd,
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


def submit(cluster: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    """``ray job submit`` from the repository."""
    return ray_cli(cluster, "job", "submit", "--working-dir", ".", "--", *command)


def train(tiny_file: Path, output_dir: Path, name: str) -> list[str]:
    return [sys.executable, "-m", "jobs.train_selfplay", str(tiny_file), f"output_dir={output_dir}", f"name={name}"]


def test_jobs_run_from_another_directory_with_the_package_sent_along(
    cluster: dict[str, str], home: Path, tiny_file: Path, tmp_path: Path
) -> None:
    """The working directory holds a configuration and nothing else; relative results are below the home directory.

    Three jobs in one submission; the last of them is mistaken, and its exit code is the submission's.
    """
    (tmp_path / "mine.yaml").write_text(tiny_file.read_text())
    (tmp_path / "id2name.json").write_text('{"0": "Dune", "1": "Emma"}')
    (tmp_path / "predictions.json").write_text('[{"input": "Dune", "output": "Emma", "predict": ["Emma"]}]')
    jobs = (
        "jobs.prepare_data mine.yaml name=mine",
        "jobs.score_predictions predictions=predictions.json catalog=. k=1 out=metrics.json",
        "jobs.evaluate mine.yaml name=never",
    )
    # -P: nothing of the directory it is started in, only what was sent
    script = " && ".join(f"{sys.executable} -P -m {job}" for job in jobs)
    modules = {"py_modules": [str(REPOSITORY / "sprec_ray"), str(REPOSITORY / "jobs")]}
    options = ("--working-dir", ".", "--runtime-env-json", json.dumps(modules), "--")
    done = ray_cli(cluster, "job", "submit", *options, "bash", "-c", script, cwd=tmp_path)
    data = home / "sprec_ray" / "runs" / "mine" / "data"
    assert (data / MARKER).is_file(), done.stdout[-2000:] + done.stderr[-2000:]
    assert f"Data: {data}" in done.stdout
    assert f"Written to {home / 'sprec_ray' / 'metrics.json'}" in done.stdout
    assert done.returncode == 1  # Ray's own; the job's code is in the message
    assert "failed with exit code 2" in done.stdout + done.stderr
    assert "does not exist; run jobs.train_selfplay with the same arguments first" in done.stdout
    assert "Traceback" not in done.stdout


def left_alive(cluster: dict[str, str], kind: str, dead: str) -> list[str]:
    """The actors or placement groups of the cluster that are not in their last state."""
    listed = ray_cli(cluster, "list", kind, "--format", "json", "--limit", "1000")
    assert listed.returncode == 0, listed.stderr[-2000:]
    found = json.loads(listed.stdout) if listed.stdout.startswith("[") else []  # a sentence when there is nothing
    rows = [row for row in found if row["state"] != dead]
    return [json.dumps(row) for row in rows if row.get("class_name") not in RAY_DATA_KEEPS]


def test_a_stopped_job_leaves_nothing_behind_and_goes_on_when_submitted_again(
    cluster: dict[str, str], tiny_file: Path, output_dir: Path, undisturbed: RunOutcome
) -> None:
    """Its log is lines, not redrawn bars; neither the log nor the run holds a secret of the environment."""
    command = train(tiny_file, output_dir, "stopped")
    refused = submit({**cluster, "RAY_AUTH_TOKEN": "0" * 32}, *command)
    assert refused.returncode != 0
    assert "nauthorized" in refused.stdout + refused.stderr or "nvalid" in refused.stdout + refused.stderr
    started = ray_cli(
        cluster, "job", "submit", "--no-wait", "--submission-id", "stopped", "--working-dir", ".", "--", *command
    )
    assert started.returncode == 0, started.stdout[-2000:] + started.stderr[-2000:]
    deadline = time.monotonic() + TIMEOUT_S
    folder = output_dir / "stopped"
    while not (folder / "sft" / "rows.jsonl").exists():  # the workers have been handed the first training phase
        assert time.monotonic() < deadline
        time.sleep(0.1)
    ray_cli(cluster, "job", "stop", "stopped")
    log = ray_cli(cluster, "job", "logs", "stopped").stdout
    assert "interrupted; the same command continues" in log
    assert "Traceback" not in log
    deadline = time.monotonic() + 60
    while left := [*left_alive(cluster, "actors", "DEAD"), *left_alive(cluster, "placement-groups", "REMOVED")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    assert not (folder / "results.json").exists()
    assert [path for path in folder.rglob(".*") if path.name != ".lock" and "ray-train" not in path.parts] == []
    again = submit(cluster, *command)
    assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-2000:]
    assert "succeeded" in again.stdout + again.stderr
    assert f"Report: {folder / 'report.html'}" in again.stdout
    assert (folder / "report.html").is_file()
    assert re.search(r"sft: step \d+ of \d+, loss \d", again.stdout)
    assert "\r" not in again.stdout
    leaves = [log, again.stdout, again.stderr]
    leaves += [path.read_text(errors="ignore") for path in folder.rglob("*") if path.is_file()]
    for name in ("RAY_AUTH_TOKEN", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY"):
        assert not any(cluster[name] in text for text in leaves), name
    assert (folder / ADAPTER).read_bytes() == (undisturbed.report.parent / ADAPTER).read_bytes()
