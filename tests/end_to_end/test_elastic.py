"""A run that is continued with other resources than it was started with."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sprec_ray.cluster.engines.worker_group import TrainingError, TrainingSession
from sprec_ray.cluster.runs.run import train_selfplay
from sprec_ray.storage.artifacts import MARKER, read_json
from tests.fixture_types import Make, Train

pytestmark = pytest.mark.soak


def test_a_run_of_two_workers_interrupted_in_training_goes_on_with_one(
    train: Train, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted at a state of the first SFT. Sums are in another order, so the last digits may differ.

    Without dropout, whose masks depend on the workers. Four workers to two: tests/training/test_state.py.
    """
    settings = ("model.lora.dropout=0", "sft.num_epochs=40", "selfplay.num_iterations=0", "evaluation.base=false")
    undisturbed = train(tiny("inelastic", *settings))
    two = tiny("elastic", *settings, "training.num_workers=2", "training.cpus_per_worker=0.5")
    run = TrainingSession.run

    def interrupted(self: TrainingSession, task: object, *, label: str, keep_state: object = None) -> object:
        def keep_and_fail(state: bytes) -> None:
            keep_state(state)  # type: ignore[operator]
            raise OSError("interrupted")

        return run(self, task, label=label, keep_state=keep_and_fail)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(TrainingSession, "run", interrupted)
        with pytest.raises((OSError, TrainingError), match="interrupted"):
            train_selfplay(two)
    outcome = train(tiny("elastic", *settings))
    folder = outcome.report.parent
    assert read_json(folder / "sft" / MARKER)["summary"]["num_resumed_steps"] > 0
    adapter = Path("sft") / "adapter_model.safetensors"
    ours, theirs = load_file(folder / adapter), load_file(undisturbed.report.parent / adapter)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
