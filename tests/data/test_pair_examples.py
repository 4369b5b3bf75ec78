from __future__ import annotations

from typing import Any

import pytest

from sprec_ray.config.data import DataConfig
from sprec_ray.data.pair_examples import (
    NO,
    YES,
    first_answer,
    pairs_of_ratings,
    pretraining_groups,
    ranking_group,
    split_users,
    yes_no_groups,
)
from sprec_ray.types import Interaction, PairExample

TITLES = {str(index): f"T{index}" for index in range(20)}


def ratings(user: str, stars: str) -> list[Interaction]:
    """Item i has stars[i]; "-" is an item without a rating. Later items are rated later."""
    return [
        Interaction(
            user_id=user,
            item_id=str(index),
            timestamp=float(index),
            order=index,
            rating=None if star == "-" else float(star),
        )
        for index, star in enumerate(stars)
    ]


def config(**changes: Any) -> DataConfig:
    return DataConfig(
        **({"source": "movielens", "task": "pairs", "path": "x", "max_history": 8, "min_judged": 2} | changes)
    )


def test_history_is_what_was_liked_before_the_liked_candidate() -> None:
    """Above 3 are items 0, 3 and 5; 3 stars are not liked."""
    (example,), dropped = pairs_of_ratings(ratings("7", "513425"), TITLES, config())
    assert (example.example_id, example.history, example.liked) == ("7", ("T0", "T3"), "T5")
    assert len(set(example.disliked)) == 2
    assert set(example.disliked) <= {"T1", "T2", "T4"}
    assert dropped == {}


def test_only_the_last_rated_titles_count() -> None:
    """Of eight ratings the last six have two disliked ones, which are all drawn."""
    (example,), _ = pairs_of_ratings(ratings("7", "11551551"), TITLES, config(max_history=6))
    assert example.history == ("T2", "T3", "T5")
    assert (example.liked, sorted(example.disliked)) == ("T6", ["T4", "T7"])


def test_the_last_rating_of_a_title_counts() -> None:
    events = ratings("7", "55115")
    again = Interaction(user_id="7", item_id="0", timestamp=9.0, order=9, rating=1.0)
    (example,), _ = pairs_of_ratings([*events, again], TITLES, config())
    assert "T0" not in example.history
    assert example.liked == "T4"


def test_users_with_too_few_of_either_are_dropped_and_counted() -> None:
    rows = [*ratings("a", "5515"), *ratings("b", "5511"), *ratings("c", "11-15")]
    examples, dropped = pairs_of_ratings(rows, TITLES, config())
    assert [example.example_id for example in examples] == ["b"]
    assert dropped == {"users_below_min_judged": 2, "rating_missing": 1}
    with pytest.raises(ValueError, match=r"no user of 1 has 2 liked and 2 disliked titles .* lower data.min_judged"):
        pairs_of_ratings(ratings("a", "5515"), TITLES, config())


def test_a_users_pairs_do_not_depend_on_the_others() -> None:
    mine = ratings("b", "15131151155")
    alone, _ = pairs_of_ratings(mine, TITLES, config())
    among, _ = pairs_of_ratings([*ratings("a", "55115"), *mine], TITLES, config())
    assert alone[0] == among[1]
    other, _ = pairs_of_ratings(mine, TITLES, config(seed=1))
    assert other[0].disliked != alone[0].disliked or other[0].liked_first != alone[0].liked_first


def users(count: int) -> list[PairExample]:
    return [
        PairExample(example_id=str(index), history=("A",), liked="B", disliked=("C",), liked_first=(True,))
        for index in range(count)
    ]


def test_no_user_is_in_two_splits_and_more_training_users_leave_the_others() -> None:
    few = split_users(users(20), {"train": 4, "valid": 2, "test": 6}, seed=0)
    many = split_users(users(20), {"train": 12, "valid": 2, "test": 6}, seed=0)
    names = [example.example_id for rows in many.values() for example in rows]
    assert len(names) == len(set(names)) == 20
    assert (few["test"], few["valid"], few["train"]) == (many["test"], many["valid"], many["train"][:4])


def test_too_few_users_are_shared_out() -> None:
    """12 users for 24 places: half of each."""
    splits = split_users(users(12), {"train": 12, "valid": 4, "test": 8}, seed=0)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 6, "valid": 2, "test": 4}
    with pytest.raises(ValueError, match="2 users are too few to split"):
        split_users(users(2), {"train": 9, "valid": 9, "test": 9}, seed=0)


PAIR = PairExample(example_id="7", history=("H",), liked="L", disliked=("A", "B"), liked_first=(True, False))


def test_every_wrong_answer_has_the_prompt_of_its_pair() -> None:
    """The right answer is to the first prompt; prompts name the titles in their own order."""
    group = ranking_group(PAIR, 2)
    assert group.candidates == (("L", "A"), ("L", "A"), ("B", "L"))
    assert group.answers == (("L", "A"), ("A", "L"), ("B", "L"))
    assert first_answer(group).answers == (("L", "A"),)
    assert ranking_group(PAIR, 1).candidates == (("L", "A"), ("L", "A"))


def test_both_titles_of_the_first_pair_are_judged() -> None:
    liked, disliked = yes_no_groups(PAIR)
    assert (liked.candidates[0], liked.answers) == (("L",), ((YES,), (NO,)))
    assert (disliked.candidates[0], disliked.answers) == (("A",), ((NO,), (YES,)))


def test_pre_training_says_nothing_about_what_is_liked() -> None:
    """Its answers name both titles of the prompt; over many rows the liked one is first in about half of them."""
    rows = [
        PairExample(example_id=str(index), history=("H",), liked="L", disliked=("A",), liked_first=(bool(index % 2),))
        for index in range(400)
    ]
    groups = pretraining_groups(rows, ["H", "L", "A", "test only"], seed=0)
    assert all(sorted(group.answers[0]) == sorted(group.candidates[0]) for group in groups)
    firsts = [group.answers[0][0] for group in groups if not group.example_id.startswith("titles/")]
    assert len(firsts) == 400
    assert 150 < firsts.count("L") < 250
    assert sorted(title for group in groups[400:] for title in group.candidates[0]) == ["A", "H", "L", "test only"]
    assert groups == pretraining_groups(list(reversed(rows)), ["H", "L", "A", "test only"], seed=0)


def test_one_title_is_no_catalogue_to_make_pairs_of() -> None:
    assert pretraining_groups([], ["alone"], seed=0) == []
