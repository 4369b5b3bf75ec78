"""Examples as rows of supervised training, and the weights of RW."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprec_ray.selfplay.sft_groups import genre_weights, sft_groups
from sprec_ray.types import Example

GENRES = {"Dune": ("Sci-Fi",), "Emma": ("Romance",), "Solaris": ("Sci-Fi", "Drama"), "1984": ("Drama",), "Notes": ()}


def example(target: str, *history: str) -> Example:
    return Example(example_id=target, history=history, target=target)


def test_an_example_weighs_what_its_target_s_genres_lack() -> None:
    """Histories: Sci-Fi 3 (Dune twice, Solaris once), Drama 1, of 4. Targets: Sci-Fi 1, Drama 2, Romance 1, of 4.

    W = Sci-Fi (3/4)/(1/4) = 3, Drama (1/4)/(2/4) = 1/2, Romance 0/(1/4) = 0. Solaris: (3 + 1/2) / 2.
    """
    examples = [example("Solaris", "Dune"), example("1984", "Dune", "Solaris"), example("Emma")]
    assert genre_weights(examples, GENRES) == pytest.approx([1.75, 0.5, 0.0])


def test_a_target_of_unknown_genre_weighs_one() -> None:
    assert genre_weights([example("Notes", "Dune"), example("Dune", "Dune")], GENRES) == [1.0, 1.0]


@given(st.lists(st.sampled_from(["Dune", "Emma", "1984"]), min_size=1))
def test_histories_like_the_targets_give_equal_weights(targets: list[str]) -> None:
    """BIGRec is RW with weights of 1: nothing is out of proportion."""
    weights = genre_weights([example(target, target) for target in targets], GENRES)
    assert weights == pytest.approx([1.0] * len(targets))


def test_no_genre_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^sft.weighting=genre needs genres, and no training target has one"):
        genre_weights([example("Notes", "Dune")], GENRES)


def test_rows_reject_nothing_and_carry_their_weight() -> None:
    rows = sft_groups([example("Dune", "Emma"), example("Emma", "Dune")], [0.5, 2.0])
    assert [(row.chosen, row.rejected, row.weight) for row in rows] == [("Dune", (), 0.5), ("Emma", (), 2.0)]
    assert [row.weight for row in sft_groups([example("Dune")])] == [1.0]
