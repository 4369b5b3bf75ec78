from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprec_ray.training.batches import Step, accumulation, learning_rate, plan_steps

LENGTHS = [30, 7, 12, 9, 41, 5, 18, 22, 11, 3, 27]
SETTINGS = st.fixed_dictionaries(
    {
        "num_epochs": st.integers(1, 3),
        "global_batch_size": st.integers(1, 12),
        "micro_batch_size": st.integers(1, 5),
        "seed": st.integers(0, 5),
    }
)


def rows_of(step: Step) -> list[int]:
    return [row for micro_batch in step.micro_batches for row in micro_batch if row is not None]


def plan_of_all(lengths: list[int], world_size: int, settings: dict[str, int]) -> list[list[Step]]:
    return [plan_steps(lengths, worker=(rank, world_size), **settings) for rank in range(world_size)]


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30), world_size=st.integers(1, 4), settings=SETTINGS)
def test_every_row_is_trained_on_once_per_epoch(lengths: list[int], world_size: int, settings: dict[str, int]) -> None:
    plans = plan_of_all(lengths, world_size, settings)
    per_epoch = -(-len(lengths) // settings["global_batch_size"])
    assert {len(plan) for plan in plans} == {per_epoch * settings["num_epochs"]}
    for epoch in range(settings["num_epochs"]):
        steps = slice(epoch * per_epoch, (epoch + 1) * per_epoch)
        seen = Counter(row for plan in plans for step in plan[steps] for row in rows_of(step))
        assert seen == Counter(range(len(lengths)))


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30), world_size=st.integers(1, 4), settings=SETTINGS)
def test_workers_share_out_each_global_batch(lengths: list[int], world_size: int, settings: dict[str, int]) -> None:
    """All know the same batch, take disjoint parts, and run equally many forward passes of a bounded size."""
    for steps in zip(*plan_of_all(lengths, world_size, settings), strict=True):
        assert len({step.rows for step in steps}) == 1
        assert sorted(row for step in steps for row in rows_of(step)) == sorted(steps[0].rows)
        assert 1 <= len(steps[0].rows) <= settings["global_batch_size"]
        expected = accumulation(settings["global_batch_size"], settings["micro_batch_size"], world_size)
        assert {len(step.micro_batches) for step in steps} == {expected}
        for step in steps:
            for micro_batch in step.micro_batches:
                assert micro_batch == (None,) or (
                    None not in micro_batch and 1 <= len(micro_batch) <= settings["micro_batch_size"]
                )


def test_a_worker_without_rows_pads_its_micro_batches() -> None:
    """Five rows in batches of 4 leave one row at the end: worker 0 has it, worker 1 computes padding twice."""
    plans = [
        plan_steps([1] * 5, num_epochs=1, global_batch_size=4, micro_batch_size=1, seed=0, worker=(rank, 2))
        for rank in range(2)
    ]
    last = plans[0][-1].rows[0]
    assert plans[0][-1] == Step(rows=(last,), micro_batches=((last,), (None,)))
    assert plans[1][-1] == Step(rows=(last,), micro_batches=((None,), (None,)))


def test_rows_of_a_batch_are_dealt_by_length() -> None:
    """Sorted lengths 3 5 7 9 11 12 ... go to workers 0 1 0 1 ..., so that both have equal work."""
    plans = [
        plan_steps(LENGTHS, num_epochs=1, global_batch_size=11, micro_batch_size=2, seed=0, worker=(rank, 2))
        for rank in range(2)
    ]
    assert [LENGTHS[row] for row in plans[0][0].rows] == sorted(LENGTHS)
    assert [LENGTHS[row] for row in rows_of(plans[0][0])] == [3, 7, 11, 18, 27, 41]
    assert [LENGTHS[row] for row in rows_of(plans[1][0])] == [5, 9, 12, 22, 30]


def test_order_depends_on_seed_and_epoch_only() -> None:
    settings = {"num_epochs": 2, "global_batch_size": 4, "micro_batch_size": 2}
    plan = plan_steps(LENGTHS, seed=1, worker=(0, 1), **settings)
    assert plan == plan_steps(LENGTHS, seed=1, worker=(0, 1), **settings)
    batches = [frozenset(step.rows) for step in plan]
    assert batches[:3] != batches[3:]
    assert batches != [frozenset(step.rows) for step in plan_steps(LENGTHS, seed=2, worker=(0, 1), **settings)]
    assert batches == [frozenset(step.rows) for step in plan_steps(LENGTHS, seed=1, worker=(1, 2), **settings)]
    finer = plan_steps(LENGTHS, seed=1, worker=(0, 1), **(settings | {"micro_batch_size": 1}))
    assert batches == [frozenset(step.rows) for step in finer]


@pytest.mark.parametrize(
    ("global_batch_size", "micro_batch_size", "world_size", "expected"),
    [(64, 4, 1, 16), (64, 4, 4, 4), (10, 4, 1, 3), (4, 16, 1, 1), (2, 1, 4, 1), (6, 2, 2, 2)],
)
def test_accumulation_by_hand(global_batch_size: int, micro_batch_size: int, world_size: int, expected: int) -> None:
    assert accumulation(global_batch_size, micro_batch_size, world_size) == expected


def test_learning_rate_by_hand() -> None:
    """40 steps, 4 of them warm-up: peak * (1, 2, 3, 4) / 4, then peak * (40 - step) / 36 from step 4 on."""
    rates = [learning_rate(step, 40, peak=0.2, num_warmup_steps=4) for step in range(40)]
    assert rates[:4] == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert rates[4] == pytest.approx(0.2)
    assert rates[22] == pytest.approx(0.2 * 18 / 36)
    assert rates[39] == pytest.approx(0.2 / 36)


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    rates = [learning_rate(step, 4, peak=2.0, num_warmup_steps=0) for step in range(4)]
    assert rates == pytest.approx([2.0, 1.5, 1.0, 0.5])


@pytest.mark.parametrize("num_steps", [1, 5, 20])
def test_a_phase_no_longer_than_its_warm_up_only_rises(num_steps: int) -> None:
    rates = [learning_rate(step, num_steps, peak=1.0, num_warmup_steps=20) for step in range(num_steps)]
    assert rates == pytest.approx([(step + 1) / 20 for step in range(num_steps)])


@given(num_steps=st.integers(1, 300), num_warmup_steps=st.integers(0, 50))
def test_learning_rate_rises_towards_its_peak_and_falls_but_never_to_zero(
    num_steps: int, num_warmup_steps: int
) -> None:
    rates = [learning_rate(step, num_steps, peak=3.0, num_warmup_steps=num_warmup_steps) for step in range(num_steps)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(3.0 * min(1, num_steps / max(1, num_warmup_steps)))
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates) > 0
