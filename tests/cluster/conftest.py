"""The tiny model, built once per session."""

from __future__ import annotations

import pytest
import torch

from tests.decoding.tiny_llama import TinyModel, build_tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    torch.set_num_threads(1)  # beside busy actors, more threads wait for each other a hundred times longer
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))
