"""From ``ray job submit`` to the first optimizer step: ``python benchmarks/submit_latency.py [--repeats 3]``.

Starts a head node with a token, runs the demo there once until its small Llama is pre-trained and cached, then submits
it under new names and takes the time until the job's log shows the first step of SFT. The pre-training is cut to one
epoch: how good the small Llama is does not change how fast it is loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
FIRST_STEP = re.compile(r" sft: step \d+ of ")
TIMEOUT_S = 600.0


@contextlib.contextmanager
def head_node(num_cpus: int) -> Iterator[Any]:
    """A cluster of one node, with a token; yields a client of its job server."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    folder = tempfile.mkdtemp(prefix="ray-")
    ray = str(Path(sys.executable).with_name("ray"))
    options = ["--head", "--block", f"--num-cpus={num_cpus}", f"--temp-dir={folder}", "--disable-usage-stats"]
    head = subprocess.Popen(
        [ray, "start", *options, "--dashboard-host=127.0.0.1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield connect()
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def connect() -> Any:
    """A client, once the job server is up and an agent takes jobs."""
    from ray.job_submission import JobSubmissionClient

    deadline = time.monotonic() + 60
    while True:
        try:
            client = JobSubmissionClient("http://127.0.0.1:8265")
            wait_for(client, client.submit_job(entrypoint="true"), "")
            return client
        except (ConnectionError, RuntimeError):
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def wait_for(client: Any, job: str, pattern: str) -> tuple[float, str]:
    """When (seconds since the epoch) the job's log first held the pattern, and that log; without one, when it ended."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        log = client.get_job_logs(job)
        if pattern and re.search(pattern, log):
            return time.time(), log
        if client.get_job_status(job).is_terminal():
            if not pattern:
                return time.time(), log
            raise RuntimeError(f"the job ended before its first step:\n{log[-2000:]}")
        time.sleep(0.1)
    raise RuntimeError(f"no first step in {TIMEOUT_S:g} s")


def measure(client: Any, arguments: list[str], output_dir: str, name: str) -> dict[str, float]:
    """Submit the demo, stop it after its first step, and return when what was over, in seconds after the submission."""
    start = time.time()
    job = client.submit_job(
        entrypoint=f"echo driver $(date +%s.%N); {sys.executable} -m jobs.train_selfplay configs/demo.yaml "
        f"{' '.join(arguments)} output_dir={output_dir} name={name}",
        runtime_env={"working_dir": str(REPOSITORY)},
    )
    submitted = time.time()
    first_step, log = wait_for(client, job, FIRST_STEP.pattern)
    client.stop_job(job)
    wait_for(client, job, "")
    spans = [json.loads(line) for line in (Path(output_dir) / name / "timeline.jsonl").read_text().splitlines()]
    at = {span["name"]: (span["start"], span["start"] + span["duration"]) for span in spans}
    found = re.search(r"driver ([\d.]+)", log)
    assert found is not None
    times = {
        "uploaded and submitted": submitted,
        "driver process starts": float(found[1]),
        "driver has imported": at["ray"][0],
        "driver is connected": at["ray"][1],
        "data are prepared": at["data"][1],
        "first step is in the log": first_step,
    }
    return {what: moment - start for what, moment in times.items()}


def main() -> None:
    """Print the medians as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-cpus", type=int, default=2)
    parser.add_argument("arguments", nargs="*", help="section.key=value of the run")
    options = parser.parse_args()
    arguments = ["model.scratch.num_epochs=1", *options.arguments]
    with tempfile.TemporaryDirectory() as output_dir, head_node(options.num_cpus) as client:
        measure(client, arguments, output_dir, "first")
        runs = [measure(client, arguments, output_dir, f"run-{number}") for number in range(options.repeats)]
    print("| what is done | after s | took s |")
    print("|---|---|---|")
    before = 0.0
    for what in runs[0]:
        after = statistics.median(run[what] for run in runs)
        print(f"| {what} | {after:.1f} | {after - before:.1f} |")
        before = after


if __name__ == "__main__":
    main()
