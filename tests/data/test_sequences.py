import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprec_ray.data.sequences import Event, chronological_split, derive_rng, sample_examples, user_windows
from sprec_ray.types import Example


def windows(titles: str, **changes: int) -> list[Example]:
    events = [Event(float(position), position, title) for position, title in enumerate(titles)]
    limits = {"min_interactions": 1, "min_history": 1, "max_history": 10} | changes
    return user_windows("u", events, **limits)


def example(user: str, position: int, timestamp: float) -> Example:
    return Example(example_id=f"{user}:{position}", history=("h",), target="t", timestamp=timestamp)


def test_a_window_is_the_titles_just_before_its_target() -> None:
    assert [(row.example_id, "".join(row.history), row.target) for row in windows("ABCDE", max_history=2)] == [
        ("u:1", "A", "B"),
        ("u:2", "AB", "C"),
        ("u:3", "BC", "D"),
        ("u:4", "CD", "E"),
    ]


def test_shorter_histories_than_the_minimum_are_not_made() -> None:
    assert [row.target for row in windows("ABCDE", min_history=3)] == ["D", "E"]


def test_a_user_with_too_few_interactions_has_no_window() -> None:
    assert windows("ABCD", min_interactions=5) == []
    assert len(windows("ABCDE", min_interactions=5)) == 4


def test_equal_times_are_ordered_by_raw_row_number() -> None:
    events = [Event(5.0, 2, "C"), Event(5.0, 0, "A"), Event(5.0, 1, "B"), Event(1.0, 9, "first")]
    rows = user_windows("u", events, min_interactions=1, min_history=3, max_history=10)
    assert rows[0].history == ("first", "A", "B")
    assert rows[0].target == "C"


def test_repeated_titles_stay_in_the_history() -> None:
    assert windows("AABA")[-1].history == ("A", "A", "B")


def test_the_split_has_the_shares_asked_for() -> None:
    rows = [example("u", position, float(position)) for position in range(100)]
    splits = chronological_split(rows, (0.8, 0.1, 0.1))
    assert [len(splits[name]) for name in ("train", "valid", "test")] == [80, 10, 10]


def test_ties_at_a_cut_go_to_the_later_split() -> None:
    """Ten windows, cuts at 8 and 9; the times of 7 and 8 tie, so the first cut moves back to 7."""
    times = [0, 1, 2, 3, 4, 5, 6, 7, 7, 9]
    splits = chronological_split([example("u", i, float(t)) for i, t in enumerate(times)], (0.8, 0.1, 0.1))
    assert [len(splits[name]) for name in ("train", "valid", "test")] == [7, 2, 1]


@given(st.lists(st.integers(0, 30), min_size=10, max_size=80))
def test_no_target_of_a_split_is_as_late_as_one_of_the_next(times: list[int]) -> None:
    rows = [example(f"u{index % 3}", index, float(time)) for index, time in enumerate(times)]
    try:
        splits = chronological_split(rows, (0.6, 0.2, 0.2))
    except ValueError as error:
        assert "is empty; lower data.min_interactions" in str(error)  # noqa: PT017
        return
    assert sum(len(split) for split in splits.values()) == len(rows)
    assert max(row.timestamp for row in splits["train"]) < min(row.timestamp for row in splits["valid"])
    assert max(row.timestamp for row in splits["valid"]) < min(row.timestamp for row in splits["test"])
    random.Random(0).shuffle(rows)
    assert chronological_split(rows, (0.6, 0.2, 0.2)) == splits


@pytest.mark.parametrize("rows", [[], [example("u", i, 3.0) for i in range(20)], [example("u", 1, 1.0)]])
def test_an_empty_split_is_refused_with_a_remedy(rows: list[Example]) -> None:
    with pytest.raises(ValueError, match=r"split of \d+ windows is empty; lower"):
        chronological_split(rows, (0.8, 0.1, 0.1))


def test_a_sample_does_not_depend_on_the_order_of_its_input() -> None:
    rows = [example("u", position, 0.0) for position in range(50)]
    sample = sample_examples(rows, 20, seed=1, purpose="train")
    assert sample == sample_examples(rows[::-1], 20, seed=1, purpose="train")
    assert len({row.example_id for row in sample}) == 20


def test_a_smaller_sample_is_the_beginning_of_a_larger_one() -> None:
    rows = [example("u", position, 0.0) for position in range(50)]
    assert sample_examples(rows, 50, seed=1, purpose="a")[:7] == sample_examples(rows, 7, seed=1, purpose="a")


def test_seed_and_purpose_each_change_the_sample() -> None:
    rows = [example("u", position, 0.0) for position in range(50)]
    samples = {
        sample_examples(rows, 10, seed=seed, purpose=purpose) for seed, purpose in [(1, "a"), (1, "b"), (2, "a")]
    }
    assert len(samples) == 3


def test_fewer_than_asked_are_all_returned() -> None:
    rows = [example("u", position, 0.0) for position in range(5)]
    assert set(sample_examples(rows, 10, seed=0, purpose="a")) == set(rows)
    assert sample_examples([], 10, seed=0, purpose="a") == ()


def test_the_generator_is_the_same_in_another_process() -> None:
    code = "from sprec_ray.data.sequences import derive_rng; print(derive_rng(3, 'x').integers(10**9))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == derive_rng(3, "x").integers(10**9)
