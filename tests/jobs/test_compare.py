"""The job says what is wrong in one line, before Ray is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["configs/demo.yaml", "methods=[sprek]"], "error: methods: there is no method sprek "),
        (["configs/demo.yaml"], "error: name the methods to compare, for example methods=[bigrec,sprec]; known: "),
        (["methods=[sprec]"], "error: give a dataset's configuration first"),
        (["configs/none.yaml", "methods=[sprec]"], "error: configs/none.yaml: no such configuration file"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str) -> None:
    job = [sys.executable, "-X", "importtime", "-m", "jobs.compare", *arguments]
    done = subprocess.run(job, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2
    assert len(said) == 1
    assert said[0].startswith(message)
    assert " ray\n" not in done.stderr
    assert " torch\n" not in done.stderr
