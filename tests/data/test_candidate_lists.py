import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprec_ray.data.candidate_lists import check_candidates, with_candidates
from sprec_ray.types import Example

TITLES = tuple(f"title {number}" for number in range(40))
ROWS = [
    Example(example_id=f"user:{number}", history=TITLES[number : number + 3], target=TITLES[number + 3])
    for number in range(20)
]


@given(st.integers(0, 5), st.integers(2, 30))
def test_candidates_are_the_target_and_titles_outside_the_history(seed: int, num: int) -> None:
    for row in with_candidates(ROWS, TITLES, num=num, seed=seed):
        assert len(set(row.candidates)) == len(row.candidates) == num
        assert row.target in row.candidates
        assert not set(row.candidates) & set(row.history)


def test_a_row_has_the_same_candidates_whatever_is_beside_it() -> None:
    made = with_candidates(ROWS, TITLES, num=20, seed=0)
    assert with_candidates(ROWS[7:8], TITLES, num=20, seed=0) == made[7:8]
    assert with_candidates(ROWS[::-1], TITLES, num=20, seed=0) == made[::-1]
    assert with_candidates(ROWS, TITLES, num=20, seed=1) != made


def test_the_target_stands_anywhere() -> None:
    """A fixed place would be all that a model learns. Of 20 targets at 20 places each, 1.0 is expected at a place."""
    rows = [dataclasses.replace(ROWS[0], example_id=str(number)) for number in range(2000)]
    places = [row.candidates.index(row.target) for row in with_candidates(rows, TITLES, num=20, seed=0)]
    assert max(places.count(place) for place in range(20)) < 150  # 100 expected, standard deviation 9.7
    assert min(places.count(place) for place in range(20)) > 60


def test_a_target_in_the_history_stays_a_candidate() -> None:
    row = Example(example_id="1", history=("A", "B"), target="A")
    assert set(with_candidates([row], ["A", "B", "C", "D"], num=3, seed=0)[0].candidates) == {"A", "C", "D"}


def test_too_few_titles_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"holds 2 titles besides the target and the history.*lower data.num_candidates"
    ):
        with_candidates([Example(example_id="1", history=("A",), target="B")], ["A", "B", "C", "D"], num=4, seed=0)


def test_candidates_of_the_source_are_kept() -> None:
    row = dataclasses.replace(ROWS[0], candidates=(ROWS[0].target, "elsewhere"))
    assert with_candidates([row], TITLES, num=2, seed=0) == (row,)


def test_targets_at_one_place_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    first = [Example(example_id=str(n), history=("a",), target=f"T{n}", candidates=(f"T{n}", "b")) for n in range(10)]
    with_candidates(first[:9], TITLES, num=2, seed=0)
    assert not caplog.records
    with_candidates(first, TITLES, num=2, seed=0)
    assert "the target is candidate 1 in each of 10 rows" in caplog.text
    caplog.clear()
    with_candidates([*first, dataclasses.replace(first[0], candidates=("b", "T0"))], TITLES, num=2, seed=0)
    assert not caplog.records


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (("a", "b", "c"), "has 3 candidates; set data.num_candidates=3"),
        (("a", "a"), "lists the candidate 'a' twice"),
        (("a", "b"), "lacks its target 'title 3' among its candidates"),
    ],
)
def test_wrong_candidates_are_an_error_that_names_the_row(candidates: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"the example user:0 {message}"):
        check_candidates(dataclasses.replace(ROWS[0], candidates=candidates), num=2)
