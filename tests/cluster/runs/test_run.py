"""What a cluster must have before a run starts."""

from __future__ import annotations

import os

import pytest
import ray

from sprec_ray.cluster.engines.hardware import SIMULATE_GPUS
from sprec_ray.cluster.runs import run
from sprec_ray.cluster.runs.checks import check_paths
from sprec_ray.config.run import ConfigError, DecodingConfig, RunConfig, TrainingConfig


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that runs already: one node of 8 CPUs and 4 GPUs, which are only counted."""
    monkeypatch.setenv(SIMULATE_GPUS, "1")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 4.0}}])


def config(placement: str, *, num_workers: int, num_decoders: int, tensor_parallel_size: int = 1) -> RunConfig:
    return RunConfig(
        training=TrainingConfig(num_workers=num_workers, gpus_per_worker=1),
        decoding=DecodingConfig(
            engine="vllm",
            placement=placement,  # type: ignore[arg-type]
            num_decoders=num_decoders,
            gpus_per_decoder=1,
            tensor_parallel_size=tensor_parallel_size,
        ),
    )


@pytest.mark.usefixtures("cluster")
def test_side_by_side_workers_and_decoders_ask_for_the_sum() -> None:
    for placement in ("split", "colocate"):
        run._connect(config(placement, num_workers=2, num_decoders=2))
        with pytest.raises(ConfigError, match=r"ask for 5 GPUs, the cluster has 4"):
            run._connect(config(placement, num_workers=4, num_decoders=1))


@pytest.mark.usefixtures("cluster")
def test_one_after_the_other_they_ask_for_the_larger_part() -> None:
    run._connect(config("sequential", num_workers=4, num_decoders=4))
    with pytest.raises(ConfigError, match=r"ask for 5 GPUs, the cluster has 4"):
        run._connect(config("sequential", num_workers=1, num_decoders=5))


@pytest.mark.usefixtures("cluster")
def test_a_tensor_parallel_decoder_asks_for_all_its_gpus() -> None:
    run._connect(config("split", num_workers=2, num_decoders=1, tensor_parallel_size=2))
    with pytest.raises(ConfigError, match=r"ask for 6 GPUs, the cluster has 4"):
        run._connect(config("split", num_workers=2, num_decoders=1, tensor_parallel_size=4))


def test_a_ray_of_its_own_has_a_cpu_more_than_the_engines_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}])
    monkeypatch.setattr(run, "_init_ray", lambda *, num_cpus: asked.append(num_cpus))
    for placement in ("split", "sequential"):
        run._connect(RunConfig(decoding=DecodingConfig(placement=placement, num_decoders=2)))  # type: ignore[arg-type]
    assert asked == [4, 3]


def test_tensor_parallel_decoding_needs_an_installed_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    decoding = DecodingConfig(tensor_parallel_size=2, gpus_per_decoder=1)
    with pytest.raises(ConfigError, match=r"^decoding.tensor_parallel_size=2 needs vLLM, which is not installed"):
        check_paths(RunConfig(decoding=decoding))
