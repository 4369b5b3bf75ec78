"""How a job ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
# A test run in the background hands down that SIGINT is ignored; a job of a terminal heeds it.
JOB = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from jobs.command import run_job

def main(arguments):
    try:
        print("started", flush=True)
        time.sleep(60)
    finally:
        print("closed", flush=True)

run_job(main)
"""


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_closes_what_was_started_and_says_how_to_go_on(number: signal.Signals, code: int) -> None:
    job = start(JOB)
    assert job.stdout is not None
    assert job.stdout.readline() == "started\n"
    job.send_signal(number)
    out, err = job.communicate(timeout=30)
    assert out == "closed\n"
    assert err == "interrupted; the same command continues where this one stopped\n"
    assert job.returncode == code


@pytest.mark.parametrize(("error", "code"), [("ValueError", 2), ("OSError", 2), ("RuntimeError", 1)])
def test_a_mistake_is_one_line_and_a_crash_keeps_its_traceback(error: str, code: int) -> None:
    job = start(f"from jobs.command import run_job\ndef main(arguments):\n    raise {error}('why')\nrun_job(main)")
    _, err = job.communicate(timeout=30)
    assert job.returncode == code
    assert (err == "error: why\n") == (code == 2)
    assert ("Traceback" in err) == (code == 1)
