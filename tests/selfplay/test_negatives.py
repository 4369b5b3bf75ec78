from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprec_ray.data.prompts import parse_response, render_response
from sprec_ray.selfplay.negatives import drawn_groups, mix_random, self_play_groups, similar_groups, smoothing_of
from sprec_ray.types import Example, Hypothesis, PreferenceGroup, Rollout

TITLES = ("Dune", "Emma", "Ulysses", "The Hobbit", 'A Child Called "It"', "1984")
EXAMPLE = Example(example_id="7:1", history=("Ulysses", "1984"), target="Dune")
ZERO = dict.fromkeys(
    (
        "beams",
        "invalid",
        "out_of_catalog",
        "equal_to_target",
        "in_history",
        "duplicate",
        "short_groups",
        "no_group",
        "top_equal_to_target",
        "top_invalid",
    ),
    0,
)


def rollout(*texts: str | None, unfinished: tuple[int, ...] = (), example_id: str = "7:1") -> Rollout:
    """Beams for these texts, best first; places in ``unfinished`` met no end of sequence."""
    return Rollout(
        example_id=example_id,
        hypotheses=tuple(
            Hypothesis(text=text or "", logp=-1.0 - place, num_tokens=5, finished=place not in unfinished)
            for place, text in enumerate(texts)
        ),
    )


def beams(*titles: str, unfinished: tuple[int, ...] = ()) -> Rollout:
    return rollout(*(render_response(title) for title in titles), unfinished=unfinished)


def pair(
    found: Rollout, *, num_negatives: int, exclude_history: bool = False
) -> tuple[tuple[str, ...] | None, dict[str, int]]:
    """The rejected titles of the only group, or None without one, and the counts that are not 0."""
    groups, counts = self_play_groups(
        [EXAMPLE],
        {"7:1": found},
        num_negatives=num_negatives,
        parse=parse_response,
        titles=frozenset(TITLES),
        exclude_history=exclude_history,
    )
    assert counts.keys() == ZERO.keys()
    assert all(group.chosen == "Dune" and group.history == EXAMPLE.history for group in groups)
    return (groups[0].rejected if groups else None), {name: count for name, count in counts.items() if count}


def test_titles_of_the_history_are_negatives_unless_excluded() -> None:
    found = beams("Ulysses", "Emma", "1984", "The Hobbit")
    assert pair(found, num_negatives=2) == (("Ulysses", "Emma"), {"beams": 4})
    rejected, counts = pair(found, num_negatives=2, exclude_history=True)
    assert (rejected, counts) == (("Emma", "The Hobbit"), {"beams": 4, "in_history": 2})


def test_an_answer_that_shares_the_targets_tokens_is_the_target() -> None:
    """A tokenizer may make one text of two titles: such an answer names both."""
    shared = Hypothesis(
        text=render_response("DUNE"), logp=-1.0, num_tokens=5, finished=True, same_tokens=("Dune", "dune")
    )
    found = Rollout(example_id="7:1", hypotheses=(shared, *beams("Emma").hypotheses))
    assert pair(found, num_negatives=1) == (("Emma",), {"beams": 2, "equal_to_target": 1, "top_equal_to_target": 1})


def test_the_most_probable_answers_are_rejected_in_their_order() -> None:
    assert pair(beams("Emma", "1984", "Ulysses", "The Hobbit"), num_negatives=2) == (("Emma", "1984"), {"beams": 4})


def test_target_is_never_a_negative() -> None:
    rejected, counts = pair(beams("Dune", "Emma"), num_negatives=1)
    assert rejected == ("Emma",)
    assert counts == {"beams": 2, "equal_to_target": 1, "top_equal_to_target": 1}


def test_target_below_the_top_is_counted_as_such() -> None:
    assert pair(beams("Emma", "Dune"), num_negatives=1) == (("Emma",), {"beams": 2, "equal_to_target": 1})


def test_duplicates_are_dropped_and_counted() -> None:
    rejected, counts = pair(beams("Emma", "Emma", "1984", "Emma"), num_negatives=2)
    assert rejected == ("Emma", "1984")
    assert counts == {"beams": 4, "duplicate": 2}


def test_two_texts_of_one_title_are_duplicates() -> None:
    """What follows the first line is not part of the title."""
    rejected, counts = pair(rollout('"Emma"\n', '"Emma"\nmore', '"1984"\n'), num_negatives=2)
    assert rejected == ("Emma", "1984")
    assert counts == {"beams": 3, "duplicate": 1}


def test_answers_that_are_no_quoted_title_are_dropped() -> None:
    rejected, counts = pair(rollout("Emma", '"', "", '"1984"\n'), num_negatives=2)
    assert rejected == ("1984",)
    assert counts == {"beams": 4, "invalid": 3, "top_invalid": 1, "short_groups": 1}


def test_unfinished_answers_are_dropped() -> None:
    rejected, counts = pair(beams("Emma", "1984", unfinished=(0,)), num_negatives=1)
    assert rejected == ("1984",)
    assert counts == {"beams": 2, "invalid": 1, "top_invalid": 1}


def test_an_unfinished_answer_does_not_hide_a_finished_one_of_the_same_title() -> None:
    """The first beam ran on after its title; the second names the same title and is whole."""
    found = rollout('"Emma"\nand then it', '"Emma"\n', unfinished=(0,))
    assert pair(found, num_negatives=1) == (("Emma",), {"beams": 2, "invalid": 1, "top_invalid": 1})


def test_titles_outside_the_catalogue_are_kept_and_counted() -> None:
    rejected, counts = pair(beams("Dune Messiah", "Emma"), num_negatives=2)
    assert rejected == ("Dune Messiah", "Emma")
    assert counts == {"beams": 2, "out_of_catalog": 1}


def test_titles_with_quotes_inside_survive() -> None:
    assert pair(beams('A Child Called "It"'), num_negatives=1) == (('A Child Called "It"',), {"beams": 1})


def test_too_few_answers_give_a_short_group() -> None:
    rejected, counts = pair(beams("Emma", "Dune", "Emma"), num_negatives=3)
    assert rejected == ("Emma",)
    assert counts == {"beams": 3, "duplicate": 1, "equal_to_target": 1, "short_groups": 1}


@pytest.mark.parametrize("found", [beams("Dune", "Dune"), rollout("none"), rollout()])
def test_no_answer_left_gives_no_group(found: Rollout) -> None:
    rejected, counts = pair(found, num_negatives=2)
    assert rejected is None
    assert counts["no_group"] == 1
    assert "short_groups" not in counts


def test_groups_follow_the_examples_and_counts_add_up() -> None:
    other = Example(example_id="8:0", history=("Dune",), target="Emma")
    groups, counts = self_play_groups(
        [other, EXAMPLE],
        {"7:1": beams("Emma", "1984"), "8:0": beams("Emma", "Emma")},
        num_negatives=1,
        parse=parse_response,
        titles=frozenset(TITLES),
    )
    assert groups == [PreferenceGroup(example_id="7:1", history=EXAMPLE.history, chosen="Dune", rejected=("Emma",))]
    assert counts == ZERO | {"beams": 4, "equal_to_target": 1, "top_equal_to_target": 1, "duplicate": 1, "no_group": 1}


@given(
    texts=st.lists(st.sampled_from([*(render_response(title) for title in TITLES), "junk", '"new"\n']), max_size=10),
    unfinished=st.sets(st.integers(0, 9)),
    num_negatives=st.integers(1, 4),
)
def test_every_beam_is_used_or_counted_once(texts: list[str], unfinished: set[int], num_negatives: int) -> None:
    """beams = invalid + duplicates + equal to the target + distinct titles, of which the first N are rejected."""
    found = rollout(*texts, unfinished=tuple(unfinished))
    rejected, counts = pair(found, num_negatives=num_negatives)
    whole = [h.text for h in found.hypotheses if h.finished and h.text != "junk"]
    distinct = list(dict.fromkeys(parse_response(text) for text in whole if text != render_response("Dune")))
    counts = ZERO | counts
    dropped = counts["invalid"] + counts["duplicate"] + counts["equal_to_target"]
    assert counts["beams"] == len(texts) == dropped + len(distinct)
    assert (rejected or ()) == tuple(distinct[:num_negatives])


@given(seed=st.integers(0, 1000), num_negatives=st.integers(1, len(TITLES) - 1))
def test_drawn_groups_have_distinct_titles_without_the_target(seed: int, num_negatives: int) -> None:
    rng = np.random.default_rng(seed)
    (group,) = drawn_groups([EXAMPLE], num_negatives=num_negatives, titles=TITLES, rng=rng)
    assert (group.example_id, group.history, group.chosen) == ("7:1", EXAMPLE.history, "Dune")
    assert len(set(group.rejected)) == len(group.rejected) == num_negatives
    assert set(group.rejected) <= set(TITLES) - {"Dune"}


def test_drawn_groups_depend_on_their_seed() -> None:
    def draw(seed: int) -> list[PreferenceGroup]:
        return drawn_groups([EXAMPLE] * 20, num_negatives=2, titles=TITLES, rng=np.random.default_rng(seed))

    assert draw(1) == draw(1) != draw(2)


def test_random_titles_are_drawn_uniformly() -> None:
    """6000 draws among 5 titles: 1200 each, standard deviation sqrt(6000 * 0.2 * 0.8) = 31; five of them are 155."""
    groups = drawn_groups([EXAMPLE] * 6000, num_negatives=1, titles=TITLES, rng=np.random.default_rng(0))
    counts = Counter(group.rejected[0] for group in groups)
    assert counts.keys() == set(TITLES) - {"Dune"}
    assert all(abs(count - 1200) < 155 for count in counts.values())


def test_more_negatives_than_the_catalogue_has_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"6 titles, 1 of them excluded, cannot give 6 negatives; lower selfplay\.num_negatives"
    ):
        drawn_groups([EXAMPLE], num_negatives=6, titles=TITLES, rng=np.random.default_rng(0))


def test_mixing_needs_a_title_that_is_not_in_the_group() -> None:
    group = PreferenceGroup(example_id="a", history=("x",), chosen="Dune", rejected=("Emma", "1984"))
    with pytest.raises(ValueError, match="3 titles, 3 of them excluded, cannot give 1 negatives"):
        mix_random([group], ratio=1.0, titles=("Dune", "Emma", "1984"), rng=np.random.default_rng(0))


GROUPS = st.lists(
    st.tuples(st.sampled_from(TITLES), st.lists(st.sampled_from([*TITLES, "unknown"]), max_size=3, unique=True)),
    max_size=12,
).map(
    lambda rows: [
        PreferenceGroup(
            example_id=str(row), history=("x",), chosen=chosen, rejected=tuple(t for t in rejected if t != chosen)
        )
        for row, (chosen, rejected) in enumerate(rows)
    ]
)


@given(groups=GROUPS, ratio=st.floats(0, 1), seed=st.integers(0, 100))
def test_mixing_replaces_exactly_its_share(groups: list[PreferenceGroup], ratio: float, seed: int) -> None:
    """round(ratio * number of negatives) places change; no group gets its chosen title or one title twice."""
    mixed = mix_random(groups, ratio=ratio, titles=TITLES, rng=np.random.default_rng(seed))
    changed = 0
    for group, other in zip(groups, mixed, strict=True):
        assert (other.example_id, other.history, other.chosen) == (group.example_id, group.history, group.chosen)
        assert len(other.rejected) == len(group.rejected)
        assert len(set(other.rejected)) == len(other.rejected)
        assert other.chosen not in other.rejected
        new = [new for old, new in zip(group.rejected, other.rejected, strict=True) if old != new]
        assert set(new) <= set(TITLES)
        changed += len(new)
    assert changed == round(ratio * sum(len(group.rejected) for group in groups))


def test_mixing_is_seeded_and_spread_over_the_groups() -> None:
    groups = [
        PreferenceGroup(example_id=str(row), history=("x",), chosen="Dune", rejected=("Emma", "1984"))
        for row in range(50)
    ]

    def mix(seed: int) -> list[PreferenceGroup]:
        return mix_random(groups, ratio=0.5, titles=TITLES, rng=np.random.default_rng(seed))

    assert mix(1) == mix(1) != mix(2)
    touched = sum(group != other for group, other in zip(groups, mix(1), strict=True))
    assert 25 < touched < 50  # 50 of 100 places, in neither only whole groups nor all of them


def test_shares_draw_titles_as_often_as_they_say() -> None:
    """Popular negatives: of 2,000 groups about 3/4 reject Emma and none rejects a title without a share."""
    shares = np.array([0.0, 0.75, 0.25, 0.0, 0.0, 0.0])
    groups = drawn_groups([EXAMPLE] * 2000, num_negatives=1, titles=TITLES, rng=np.random.default_rng(0), shares=shares)
    counts = Counter(group.rejected[0] for group in groups)
    assert set(counts) == {"Emma", "Ulysses"}
    assert counts["Emma"] == pytest.approx(1500, abs=80)


def test_shares_that_leave_too_few_titles_are_refused() -> None:
    shares = np.array([0.5, 0.5, 0.0, 0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"^2 titles, 1 of them excluded, cannot give 2 negatives"):
        drawn_groups([EXAMPLE], num_negatives=2, titles=TITLES, rng=np.random.default_rng(0), shares=shares)


def test_the_most_similar_titles_but_the_target_are_rejected() -> None:
    neighbours = {"Dune": ["Dune", "Ulysses", "Emma"]}
    (group,) = similar_groups([EXAMPLE], neighbours, num_negatives=2)
    assert group.rejected == ("Ulysses", "Emma")
    (group,) = similar_groups([EXAMPLE], {"Dune": ["Emma", "1984", "Dune"]}, num_negatives=1)
    assert group.rejected == ("Emma",)


def smoothing(chosen: float, rejected: float) -> float:
    group = PreferenceGroup(example_id="7:1", history=(), chosen="Dune", rejected=("Emma",))
    scores = np.array([chosen, rejected], dtype=np.float32)
    return smoothing_of(group, scores, {"Dune": 0, "Emma": 1}.get)


def test_smoothing_is_the_oracle_s_doubt() -> None:
    """P(Emma over Dune) = 1 / (1 + e^(s(Dune) - s(Emma))): 1/4 for a difference of log 3."""
    assert smoothing(np.log(3.0), 0.0) == pytest.approx(0.25)
    assert smoothing(9.0, 9.0) == pytest.approx(0.5, abs=2e-3)
    assert smoothing(0.0, 50.0) < 0.5, "beyond one half the pair would be turned round"
    assert 0 <= smoothing(1e9, -1e9) < 1e-12


def test_an_oracle_that_does_not_know_a_title_has_no_doubt() -> None:
    group = PreferenceGroup(example_id="7:1", history=(), chosen="Dune", rejected=("Nowhere",))
    assert smoothing_of(group, np.zeros(2, dtype=np.float32), {"Dune": 0}.get) == 0.0
