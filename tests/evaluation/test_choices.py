"""S-DPO's protocol by hand, its traps, and a naive second implementation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprec_ray.evaluation.choices import (
    candidate_rows,
    evaluate_candidates,
    hit_metrics,
    judge,
    published_names,
    rank_candidates,
    ranking_metrics,
    strict_names,
)
from sprec_ray.types import Example

CANDIDATES = ("Alien", "Aliens", "Dune", "It", 'A Child Called "It"')


def row(target: str, candidates: tuple[str, ...] = CANDIDATES) -> Example:
    return Example(example_id="1", history=("Emma",), target=target, candidates=candidates)


@pytest.mark.parametrize(
    ("text", "published", "strict"),
    [
        ('"Dune"\n', ["Dune"], ["Dune"]),
        ("", [], []),
        ('"', [], []),
        ('"Alien"\n', ["Alien"], ["Alien"]),
        ('"Aliens"\n', ["Alien", "Aliens"], ["Aliens"]),  # the target nested in another, and the reverse
        ('"A Child Called "It""\n', ["It", 'A Child Called "It"'], ['A Child Called "It"']),
        ("Dune and Aliens", ["Alien", "Aliens", "Dune"], ["Aliens", "Dune"]),
        ('"Dune", "Dune"\n', ["Dune"], ["Dune"]),
        ('"Italian Duneland"\n', ["Dune", "It"], []),  # not words of their own
        ('"dune"\n', [], []),
        ('"Emma"\n', [], []),  # a title, but no candidate
        ('"Dune"\n"Alien"\n', ["Alien", "Dune"], ["Dune"]),  # an answer ends with its line
        ("Aliens Alien", ["Alien", "Aliens"], ["Alien", "Aliens"]),  # the second stands by itself
    ],
)
def test_names_by_hand(text: str, published: list[str], strict: list[str]) -> None:
    assert published_names(text, CANDIDATES) == published
    assert strict_names(text, CANDIDATES) == strict


def test_another_title_of_the_catalogue_names_no_candidate() -> None:
    """``It`` stands in ``It Follows`` as a word of its own, but the answer is the longer title."""
    text, one = '"It Follows"\n', row("It")
    assert strict_names(text, CANDIDATES) == ["It"]
    assert strict_names(text, CANDIDATES, {"It Follows"}) == []
    assert strict_names("It Follows", CANDIDATES, {"It Follows"}) == ["It"]  # no quoted title
    logps = np.zeros((1, len(one.candidates)))
    metrics = evaluate_candidates("sft", [text], logps, [one], ks=(1,), titles={"It Follows"}).metrics
    assert (metrics["valid_ratio"], metrics["hit_ratio@1"], metrics["title_ratio"]) == (0, 0, 1)
    assert candidate_rows([text], logps, [one], ks=(1,), titles={"It Follows"})["valid_ratio"].tolist() == [0]


def test_a_title_of_symbols_and_one_that_is_a_pattern_are_text() -> None:
    candidates = ("!!!", "a.c", "abc", "嵐")
    assert strict_names('"!!!"\n', candidates) == ["!!!"]
    assert strict_names("an abc", candidates) == ["abc"]
    assert strict_names('"嵐"\n', candidates) == ["嵐"]


def test_ratios_by_hand() -> None:
    """Five answers: two hits, one valid miss, one of two titles, one empty. HitRatio 2/5, of valid 2/3, valid 3/5."""
    rows = [row("Dune"), row("Alien"), row("Dune"), row("Dune"), row("It")]
    texts = ['"Dune"\n', '"Alien"\n', '"It"\n', "Dune or It", ""]
    valid_B, hit_B = judge(texts, rows, strict_names)
    assert valid_B.tolist() == [True, True, True, False, False]
    assert hit_B.tolist() == [True, True, False, False, False]
    metrics = hit_metrics(valid_B, hit_B)
    assert metrics["hit_ratio@1"] == 2 / 5
    assert metrics["hit_ratio_valid@1"] == 2 / 3
    assert metrics["valid_ratio"] == 3 / 5
    assert metrics["hit_ratio_se@1"] == pytest.approx(math.sqrt(0.4 * 0.6 / 5))
    assert metrics["hit_ratio_valid_se@1"] == pytest.approx(math.sqrt(2 / 3 * 1 / 3 / 3))


def test_nesting_costs_the_published_rule_a_hit() -> None:
    result = evaluate_candidates("sft", ['"Aliens"\n'], np.zeros((1, 5)), [row("Aliens")], ks=(1, 5))
    assert result.metrics["hit_ratio@1"] == 1.0
    assert result.metrics["hit_ratio_published@1"] == 0.0
    assert result.metrics["valid_ratio_published"] == 0.0
    assert result.counts["num_nested_targets"] == 0
    assert evaluate_candidates("", [""], np.zeros((1, 5)), [row("It")], ks=(1,)).counts["num_nested_targets"] == 1


def test_no_valid_answer_is_nan_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    metrics = hit_metrics(np.array([False]), np.array([False]))
    assert (metrics["hit_ratio@1"], metrics["valid_ratio"]) == (0.0, 0.0)
    assert math.isnan(metrics["hit_ratio_valid@1"])
    assert "undefined, reported as NaN: hit_ratio_valid@1" in caplog.text
    none = np.zeros(0, dtype=np.bool_)
    assert all(math.isnan(value) for value in hit_metrics(none, none).values())


titles = st.lists(
    st.text("abAB ", min_size=1, max_size=4).map(str.strip).filter(bool), min_size=2, max_size=6, unique=True
)


@given(titles, st.data())
def test_a_quoted_candidate_names_itself_and_the_published_rule_agrees_where_nothing_is_nested(
    candidates: list[str], data: st.DataObject
) -> None:
    title = data.draw(st.sampled_from(candidates))
    assert strict_names(f'"{title}"\n', candidates) == [title]
    nested = [other for other in candidates if other != title and other in title]
    assert sorted(published_names(f'"{title}"\n', candidates)) == sorted([title, *nested])


@given(titles, st.text('abAB "', max_size=12))
def test_strict_names_are_published_names(candidates: list[str], text: str) -> None:
    assert set(strict_names(text, candidates)) <= set(published_names(text, candidates))


@given(st.lists(st.lists(st.integers(-3, 3), min_size=4, max_size=4), min_size=1, max_size=8), st.data())
def test_ranking_against_a_sort_of_each_row(logps: list[list[int]], data: st.DataObject) -> None:
    places = [data.draw(st.integers(0, 3)) for _ in logps]
    rows = [row("abcd"[place], tuple("abcd")) for place in places]
    hits, gains = 0, 0.0
    for values, place in zip(logps, places, strict=True):
        rank = sorted(range(4), key=lambda index: (-values[index], index)).index(place)
        hits += rank == 0
        gains += 1 / math.log2(rank + 2) if rank < 3 else 0.0
    metrics = ranking_metrics(np.array(logps, dtype=float), rows, (3,))
    assert metrics["hr@1"] == pytest.approx(hits / len(rows))
    assert metrics["ndcg@3"] == pytest.approx(gains / len(rows))
    assert metrics["hr@1"] == pytest.approx(metrics["ndcg@1"])


@given(st.lists(st.sampled_from(['"Dune"\n', '"Alien"\n', '"Aliens"\n', "Dune or It", '"Emma"\n', ""]), min_size=1))
def test_what_rows_add_has_the_metrics_as_mean(texts: list[str]) -> None:
    rng = np.random.default_rng(len(texts))
    rows = [row(CANDIDATES[index]) for index in rng.integers(5, size=len(texts))]
    logps_BC = rng.random((len(texts), 5))
    added = candidate_rows(texts, logps_BC, rows, ks=(3,), titles={"Dune", "Emma"})
    metrics = evaluate_candidates("x", texts, logps_BC, rows, ks=(3,), titles={"Dune", "Emma"}).metrics
    assert added.keys() == {name for name in metrics if "_se@" not in name}
    for name, values in added.items():
        counted = values[~np.isnan(values)]
        mean = counted.mean() if len(counted) else math.nan
        assert mean == pytest.approx(metrics[name], nan_ok=True), name


def test_a_random_ranking_hits_one_in_twenty() -> None:
    """4,000 rows: standard error .0034."""
    candidates = tuple(f"title {number}" for number in range(20))
    rng = np.random.default_rng(0)
    rows = [row(candidates[index], candidates) for index in rng.integers(20, size=4000)]
    assert ranking_metrics(rng.random((4000, 20)), rows, (1,))["hr@1"] == pytest.approx(1 / 20, abs=0.012)


def test_a_log_probability_that_is_not_a_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="a candidate of row 1 has no log-probability"):
        rank_candidates(np.array([[0.0, 1.0], [0.0, np.nan]]))
