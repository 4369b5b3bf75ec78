"""The tiny model of the training tests, built once per session."""

from __future__ import annotations

import pytest
import torch

from tests.training.tiny_training import TinyPolicy, build_tiny_policy


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # on a busy machine more threads wait for each other a hundred times longer


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> TinyPolicy:
    return build_tiny_policy(tmp_path_factory.mktemp("tiny-policy"))
