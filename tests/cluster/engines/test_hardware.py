"""The switch that lets GPUs be counted without being there."""

from __future__ import annotations

import pytest

from sprec_ray.cluster.engines.hardware import SIMULATE_GPUS, computes_on_gpu, environment
from sprec_ray.cluster.runs import resources
from sprec_ray.cluster.runs.resources import check_resources
from sprec_ray.config.run import ConfigError, DecodingConfig, ModelConfig, RunConfig, TrainingConfig


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A run on the only GPU of a cluster, which torch does not see."""
    node = {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}, "NodeManagerAddress": "10.0.0.7"}
    monkeypatch.setattr(resources.ray, "nodes", lambda: [node])
    monkeypatch.setattr(resources, "nodes_without_cuda", lambda: ["10.0.0.7"])
    return RunConfig(
        training=TrainingConfig(gpus_per_worker=0.5),
        decoding=DecodingConfig(gpus_per_decoder=0.5),
    )


def test_gpus_that_are_not_there_are_an_error(one_gpu: RunConfig) -> None:
    with pytest.raises(ConfigError, match=rf"torch finds no CUDA device on 10\.0\.0\.7: .* set {SIMULATE_GPUS}=1"):
        check_resources(one_gpu)


def test_the_switch_computes_on_the_cpu_with_a_warning(
    one_gpu: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert computes_on_gpu(0.5)
    assert environment() == {}
    monkeypatch.setenv(SIMULATE_GPUS, "1")
    check_resources(one_gpu)
    assert "everything is computed on the CPU" in caplog.text
    assert not computes_on_gpu(0.5)
    assert environment() == {SIMULATE_GPUS: "1"}


def test_without_gpus_nothing_is_asked(one_gpu: RunConfig) -> None:
    check_resources(RunConfig())
    assert not computes_on_gpu(0.0)


def test_4_bit_weights_cannot_be_simulated(one_gpu: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIMULATE_GPUS, "1")
    quantized = RunConfig(model=ModelConfig(quantization="nf4"), training=one_gpu.training, decoding=one_gpu.decoding)
    with pytest.raises(ConfigError, match=r"model\.quantization=nf4 computes on GPUs only"):
        check_resources(quantized)


def test_another_value_of_the_switch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIMULATE_GPUS, "yes")
    with pytest.raises(ValueError, match=f"{SIMULATE_GPUS}=yes must be 1"):
        computes_on_gpu(1)
