import pytest

from sprec_ray.selfplay.candidate_negatives import candidate_groups
from sprec_ray.types import Example

CANDIDATES = tuple(f"title {number}" for number in range(20))
ROWS = [
    Example(example_id=str(number), history=("A",), target=CANDIDATES[number], candidates=CANDIDATES)
    for number in range(20)
]


def test_negatives_are_other_candidates_of_the_row() -> None:
    groups = candidate_groups(ROWS, num_negatives=19, seed=0, iteration=0)
    assert all({group.chosen, *group.rejected} == set(CANDIDATES) for group in groups)
    assert all(group.candidates == CANDIDATES for group in groups)


def test_fewer_negatives_are_the_beginning_of_more() -> None:
    few, many = (candidate_groups(ROWS, num_negatives=count, seed=0, iteration=0) for count in (1, 10))
    assert all(first.rejected == second.rejected[:1] for first, second in zip(few, many, strict=True))


def test_a_row_draws_by_its_name_the_seed_and_the_iteration() -> None:
    groups = candidate_groups(ROWS, num_negatives=3, seed=0, iteration=0)
    assert candidate_groups(ROWS[5:6], num_negatives=3, seed=0, iteration=0) == groups[5:6]
    assert candidate_groups(ROWS, num_negatives=3, seed=1, iteration=0) != groups
    assert candidate_groups(ROWS, num_negatives=3, seed=0, iteration=1) != groups


def test_too_few_candidates_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"has 19 candidates besides its target, fewer than selfplay.num_negatives=20"):
        candidate_groups(ROWS, num_negatives=20, seed=0, iteration=0)
