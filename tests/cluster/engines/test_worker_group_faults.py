"""A training group that loses a worker, or a driver that cannot write: nothing that was done is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray import ActorID
from ray.core.generated.gcs_pb2 import PlacementGroupTableData

from sprec_ray.cluster.engines.tasks import TrainTask
from sprec_ray.cluster.engines.worker import _is_lost_peer
from sprec_ray.cluster.engines.worker_group import TrainingSession
from sprec_ray.cluster.studies.orphans import _placement_groups
from sprec_ray.config.data import ScratchConfig
from sprec_ray.config.methods import PhaseConfig
from sprec_ray.config.run import LoraConfig, TrainingConfig
from sprec_ray.data.prompts import render_response
from sprec_ray.data.tokens import TextSettings
from sprec_ray.models.scratch import write_untrained_model
from sprec_ray.storage.artifacts import write_rows
from sprec_ray.training.phase import Phase
from sprec_ray.types import PreferenceGroup

TITLES = ("Dune", "Emma", "Ulysses", "The Waves")
TEXT = TextSettings(template="short", noun="book", max_prompt_tokens=120, max_response_tokens=24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    scratch = ScratchConfig(vocab_size=400, hidden_size=64, num_layers=2, num_heads=2)
    write_untrained_model(folder / "model", [render_response(title) for title in TITLES], scratch, max_positions=256)
    rows = [
        PreferenceGroup(example_id=str(n), history=(TITLES[n % 4],), chosen=TITLES[(n + 1) % 4], rejected=())
        for n in range(16)
    ]
    write_rows(folder / "rows.jsonl", rows)
    return folder


def task_of(folder: Path, name: str, training: TrainingConfig) -> TrainTask:
    """Two hundred short steps with dropout."""
    phase = Phase(
        model_path=str(folder / "model"),
        dtype="float32",
        out=str(folder / name),
        seed=3,
        training=training,
        lora=LoraConfig(rank=4, alpha=8, dropout=0.1),
        optimization=PhaseConfig(num_epochs=100, global_batch_size=8, micro_batch_size=4, learning_rate=1e-2),
    )
    return TrainTask(phase=phase, rows_path=str(folder / "rows.jsonl"), text=TEXT)


def processes(name: str) -> list[psutil.Process]:
    """The processes of this Ray with such a name, in order of their start."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in " ".join(process.cmdline()):
                found.append(process)
    return sorted(found, key=lambda process: process.create_time())


TRAINING = TrainingConfig(num_threads=1, num_workers=2, cpus_per_worker=0.5, save_steps=20)


@pytest.fixture(scope="module")
def session(ray_session: None, folder: Path) -> Iterator[TrainingSession]:
    """Two workers that must not be ended by what ends one of them, or their controller."""
    session = TrainingSession(TRAINING, storage=folder / "ray")
    yield session
    session.close()


@pytest.fixture(scope="module")
def undisturbed(session: TrainingSession, folder: Path) -> dict[str, Any]:
    return session.run(task_of(folder, "whole", TRAINING), label="whole")


@pytest.mark.parametrize("victim", ["RayTrainWorker", "TrainController"])
def test_a_killed_process_costs_a_few_steps_and_no_bit(
    session: TrainingSession, undisturbed: dict[str, Any], folder: Path, victim: str
) -> None:
    """The first saved state pulls the trigger; a worker that loses its peer must not end the run either."""
    states: list[bytes] = []

    def kill_one(state: bytes) -> None:
        states.append(state)
        if len(states) == 1:
            os.kill(processes(victim)[-1].pid, signal.SIGKILL)

    killed = session.run(task_of(folder, victim, TRAINING), label="killed", keep_state=kill_one)
    assert undisturbed["num_resumed_steps"] == 0
    assert killed["num_resumed_steps"] >= 20
    assert killed["steps"] == undisturbed["steps"]
    one, other = (folder / name / "adapter_model.safetensors" for name in ("whole", victim))
    assert one.read_bytes() == other.read_bytes()


def group_of(session: TrainingSession) -> PlacementGroupTableData:
    """What Ray knows of the workers' placement group."""
    groups = map(PlacementGroupTableData.FromString, _placement_groups())
    return next(group for group in groups if group.placement_group_id == session._reserved.id.binary())


def test_a_state_that_cannot_be_written_is_an_error_of_the_disk_and_what_was_reserved_is_free(
    session: TrainingSession, folder: Path
) -> None:
    """The last task of the session: it is closed with the task unfinished and its mailbox dead."""

    def full(state: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "state.safetensors")

    free = ray.available_resources().get("CPU", 0)
    try:
        with pytest.raises(OSError, match=r"No space left on device: 'state.safetensors'"):
            session.run(task_of(folder, "full", TRAINING), label="full", keep_state=full)
    finally:
        reserved = group_of(session)
        assert ActorID(reserved.creator_actor_id).is_nil()  # the driver's, so Ray removes it with the job
        ray.kill(session._mailbox)
        session.close()
        session.close()
    assert not session._thread.is_alive()
    assert group_of(session).state == PlacementGroupTableData.REMOVED
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < free + TRAINING.num_workers * TRAINING.cpus_per_worker:
        assert time.monotonic() < deadline, "the workers still hold their resources"
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (
            RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]"),
            True,
        ),
        (RuntimeError("the loss became nan; lower the learning rate"), False),
        (ValueError("a group has an empty prompt"), False),
    ],
)
def test_a_lost_peer_is_told_from_an_error_of_the_phase(error: Any, lost: bool) -> None:
    assert _is_lost_peer(error) == lost
