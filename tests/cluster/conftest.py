"""The tiny model, built once per session."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny model of tests/decoding, which is not on this folder's path."""
    torch.set_num_threads(1)  # beside busy actors, more threads wait for each other a hundred times longer
    helpers = runpy.run_path(str(Path(__file__).parents[1] / "decoding" / "tiny_llama.py"))
    return helpers["build_tiny_model"](tmp_path_factory.mktemp("tiny"))
