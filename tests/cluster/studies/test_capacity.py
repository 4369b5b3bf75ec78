"""How many trials run at a time: whole runs that fit, counted by hand."""

from __future__ import annotations

import pytest

from sprec_ray.cluster.runs.resources import Node
from sprec_ray.cluster.studies import capacity
from sprec_ray.cluster.studies.capacity import num_trials_at_a_time, num_whole_runs
from sprec_ray.config.run import DecodingConfig, RunConfig, TrainingConfig

BOX = Node(cpus=32, gpus=4)


def config(placement: str = "split", **settings: float) -> RunConfig:
    training = {key: value for key, value in settings.items() if key in {"num_workers", "gpus_per_worker"}}
    training["num_threads"] = settings.get("num_threads", 1)
    decoding = {key: value for key, value in settings.items() if key in {"num_decoders", "gpus_per_decoder"}}
    return RunConfig(
        training=TrainingConfig(**training),  # type: ignore[arg-type]
        decoding=DecodingConfig(placement=placement, **decoding),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("made", "nodes", "number"),
    [
        (config(), [Node(cpus=2, gpus=0)], 1),
        (config(), [Node(cpus=5, gpus=0)], 2),
        (config(), [Node(cpus=1, gpus=0)], 0),
        # a worker and a decoder on GPUs of their own: two of four GPUs each
        (config(gpus_per_worker=1, gpus_per_decoder=1), [BOX], 2),
        # both on one GPU: four runs, and eight on two nodes
        (config("colocate", gpus_per_worker=0.49, gpus_per_decoder=0.51), [BOX], 4),
        (config("colocate", gpus_per_worker=0.49, gpus_per_decoder=0.51), [BOX, BOX], 8),
        # four workers, then four decoders: the box is full with either
        (config("sequential", num_workers=4, gpus_per_worker=1, num_decoders=4, gpus_per_decoder=1), [BOX], 1),
        # four workers or one decoder: the larger side counts, so that two trials may be on the same one
        (config("sequential", num_workers=4, gpus_per_worker=1, gpus_per_decoder=1), [BOX, BOX], 2),
        # shares of 0.6 do not pack: one process per GPU, two GPUs per run
        (config(gpus_per_worker=0.6, gpus_per_decoder=0.6), [BOX], 2),
    ],
)
def test_runs_are_counted_whole(made: RunConfig, nodes: list[Node], number: int) -> None:
    assert num_whole_runs(made, nodes) == number


def test_more_at_a_time_than_fit_are_never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 6.0}}])
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64))
    assert num_trials_at_a_time([config()], "auto") == 3
    assert num_trials_at_a_time([config()], 2) == 2
    assert num_trials_at_a_time([config()], 99) == 3
    assert num_trials_at_a_time([config(), config(num_workers=2)], 99) == 2  # as many as fit of the largest
    monkeypatch.setattr(capacity.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1.0}}])
    assert num_trials_at_a_time([config()], "auto") == 1


def test_by_itself_a_sweep_does_not_share_cores_among_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 64.0}}])
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    assert num_trials_at_a_time([config()], "auto") == 4  # one thread trains, one decodes
    assert num_trials_at_a_time([config(num_threads=0)], "auto") == 1  # training takes all cores
    assert num_trials_at_a_time([config(num_threads=0)], 2) == 2  # which may be asked for
