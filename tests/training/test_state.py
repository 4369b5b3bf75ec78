"""A phase that goes on from a saved state ends as if it had not been interrupted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sprec_ray.config.methods import PhaseConfig, PreferenceConfig
from sprec_ray.config.run import TrainingConfig
from sprec_ray.training.phase import Phase
from sprec_ray.training.state import from_bytes, state_key
from tests.training.fit_process import FitProcesses, run_from_state
from tests.training.tiny_training import LORA, TinyPolicy, make_groups

pytestmark = pytest.mark.slow

ROWS = make_groups(14)
PREFERENCE_ROWS = make_groups(14, num_rejected=(1, 3, 2))
SFT = PhaseConfig(learning_rate=1e-2, num_epochs=2, global_batch_size=4, micro_batch_size=2, num_warmup_steps=3)
PREFERENCE = PreferenceConfig(
    loss="softmax_dpo", beta=0.5, learning_rate=1e-2, global_batch_size=4, micro_batch_size=2, num_warmup_steps=1
)


@pytest.fixture(scope="module")
def one() -> Iterator[FitProcesses]:
    made = FitProcesses(world_size=1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def two() -> Iterator[FitProcesses]:
    made = FitProcesses(world_size=2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def three() -> Iterator[FitProcesses]:
    made = FitProcesses(world_size=3)
    yield made
    made.close()


@pytest.fixture(scope="module")
def four() -> Iterator[FitProcesses]:
    made = FitProcesses(world_size=4)
    yield made
    made.close()


@pytest.fixture
def sft(tiny_policy: TinyPolicy, tmp_path: Path) -> Phase:
    """Eight steps, four of them in the second epoch, with dropout, so that the generators matter."""
    return Phase(
        model_path=tiny_policy.path,
        dtype="float32",
        out=str(tmp_path / "out"),
        seed=5,
        training=TrainingConfig(max_grad_norm=1.5, weight_decay=0.01, save_steps=3),
        optimization=SFT,
        lora=dataclasses.replace(LORA, dropout=0.2),
    )


@pytest.fixture
def preference(sft: Phase, tiny_policy: TinyPolicy) -> Phase:
    adapter = tiny_policy.adapters[0]
    return dataclasses.replace(
        sft,
        optimization=PREFERENCE,
        training=dataclasses.replace(sft.training, save_steps=2),
        init_adapter=adapter,
        reference_adapter=adapter,
    )


def at(phase: Phase, name: str, *, zero_stage: int = 0) -> Phase:
    training = dataclasses.replace(phase.training, zero_stage=zero_stage)
    return dataclasses.replace(phase, out=f"{phase.out}-{name}", training=training)


def weights(phase: Phase) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(Path(phase.out) / "adapter_model.safetensors")
    return tensors


def assert_same(summary: dict[str, Any], phase: Phase, expected: dict[str, Any], expected_phase: Phase) -> None:
    assert summary["steps"] == expected["steps"]
    assert summary["canary"] == expected["canary"]
    torch.testing.assert_close(weights(phase), weights(expected_phase), rtol=0, atol=0)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("world", ["one", "two"])
def test_a_resumed_phase_ends_with_the_same_bits(
    request: pytest.FixtureRequest, sft: Phase, world: str, zero_stage: int
) -> None:
    processes: FitProcesses = request.getfixturevalue(world)
    whole, resumed = at(sft, "whole", zero_stage=zero_stage), at(sft, "resumed", zero_stage=zero_stage)
    undisturbed = processes.call(run_from_state, whole, ROWS, None)
    assert len(undisturbed["steps"]) == 8
    assert len(undisturbed["saves"]) == 2  # after steps 3 and 6, the latter in the second epoch
    for saved, num_done in zip(undisturbed["saves"], (3, 6), strict=True):
        again = processes.call(run_from_state, resumed, ROWS, saved)
        assert again["num_resumed_steps"] == num_done
        assert_same(again, resumed, undisturbed, whole)


@pytest.mark.parametrize("world", ["one", "two"])
def test_a_resumed_preference_phase_ends_with_the_same_bits_and_scores_no_reference_again(
    request: pytest.FixtureRequest, preference: Phase, world: str
) -> None:
    processes: FitProcesses = request.getfixturevalue(world)
    whole, resumed = at(preference, "whole"), at(preference, "resumed")
    undisturbed = processes.call(run_from_state, whole, PREFERENCE_ROWS, None)
    # References of this key cannot be scored: the adapter of the reference is gone.
    gone = dataclasses.replace(resumed, reference_adapter="/nowhere")
    again = processes.call(run_from_state, gone, PREFERENCE_ROWS, undisturbed["saves"][0])
    assert_same(again, resumed, undisturbed, whole)
    references = [Path(phase.out) / "reference_logps.safetensors" for phase in (whole, resumed)]
    assert references[0].read_bytes() == references[1].read_bytes()


@pytest.mark.parametrize("zero_stages", [(0, 0), (2, 3), (3, 0)])
def test_fewer_workers_and_another_zero_stage_go_on_from_the_same_state(
    two: FitProcesses, four: FitProcesses, preference: Phase, zero_stages: tuple[int, int]
) -> None:
    """Four workers, then two: how a batch is dealt changes only the order of summation."""
    before, after = zero_stages
    whole, resumed = at(preference, "four", zero_stage=before), at(preference, "two", zero_stage=after)
    undisturbed = four.call(run_from_state, whole, PREFERENCE_ROWS, None)
    again = two.call(run_from_state, resumed, PREFERENCE_ROWS, undisturbed["saves"][0])
    assert again["num_resumed_steps"] == 2
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=2e-5)


def test_three_workers_go_on_though_their_parts_of_a_tensor_are_not_even(
    two: FitProcesses, three: FitProcesses, preference: Phase
) -> None:
    """ZeRO stage 3 divides tensors of 4 x 64 numbers into parts of 86, the last of them padded."""
    whole, resumed = at(preference, "two", zero_stage=3), at(preference, "three", zero_stage=3)
    undisturbed = two.call(run_from_state, whole, PREFERENCE_ROWS, None)
    again = three.call(run_from_state, resumed, PREFERENCE_ROWS, undisturbed["saves"][0])
    assert again["num_resumed_steps"] == 2
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=2e-5)


def test_a_state_of_other_groups_is_left_alone(one: FitProcesses, sft: Phase) -> None:
    saved = one.call(run_from_state, at(sft, "first"), ROWS, None)["saves"][0]
    other = one.call(run_from_state, at(sft, "other"), ROWS[:8], saved)
    assert other["num_resumed_steps"] == 0


def test_the_key_ignores_how_a_phase_is_computed(sft: Phase) -> None:
    micro = dataclasses.replace(sft, optimization=dataclasses.replace(SFT, micro_batch_size=4))
    slower = dataclasses.replace(sft, optimization=dataclasses.replace(SFT, learning_rate=1e-3))
    assert state_key(sft, ROWS) == state_key(micro, ROWS) != state_key(slower, ROWS)
    assert state_key(sft, ROWS) != state_key(sft, ROWS[1:])


def test_a_damaged_state_is_one_sentence(one: FitProcesses, sft: Phase) -> None:
    saved = one.call(run_from_state, at(sft, "first"), ROWS, None)["saves"][0]
    with pytest.raises(ValueError, match="saved state of a training phase is damaged"):
        from_bytes(saved[: len(saved) // 2], state_key(sft, ROWS))
