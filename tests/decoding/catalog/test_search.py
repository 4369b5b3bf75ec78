from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprec_ray.decoding.catalog import search as search_module
from sprec_ray.decoding.catalog.request import CatalogSearch
from sprec_ray.decoding.catalog.search import Found, search_catalog
from sprec_ray.decoding.catalog.trie import Trie
from sprec_ray.decoding.engines.free_beams import BeamSearch
from tests.decoding.toy_tree import EOS, VOCAB_SIZE, ToyTree, catalogs, make_trie, prompts, ranked, responses_of

fast = settings(deadline=None, max_examples=60)
rows = st.integers(1, 5)
UNLIMITED = 10**6


def brute_force(model: ToyTree, trie: Trie, prompt: Sequence[int]) -> dict[int, float]:
    """The log-probability of every leaf."""
    return {leaf: model.logp(prompt, response) for leaf, response in responses_of(trie).items()}


def naive_beams(model: ToyTree, trie: Trie, prompt: Sequence[int], width: int) -> list[tuple[tuple[int, ...], float]]:
    """``free_beams.BeamSearch`` over the tokens that the catalogue allows."""
    node_of = {trie.tokens_to(node): node for node in range(trie.num_nodes)}
    beams = BeamSearch(beam_width=width, max_new_tokens=trie.depth + 1, eos_token_id=EOS)
    while beams.running:
        allowed = [
            trie.token_n[slice(*trie.first_child_n[node_of[beam.token_ids] :][:2])].tolist() for beam in beams.running
        ]
        logps = [model.logps((*prompt, *beam.token_ids)) for beam in beams.running]
        beams.advance([{token: row[token] for token in some} for some, row in zip(allowed, logps, strict=True)])
    return [(beam.token_ids, beam.logp) for beam in beams.finished]


def restricted_logps(model: ToyTree, trie: Trie, prompt: Sequence[int]) -> dict[int, float]:
    """The log-probability of every leaf among the tokens that the catalogue allows, from the root down."""
    logp_n = np.zeros(trie.num_nodes)
    for node in range(trie.num_nodes):
        children = np.arange(trie.first_child_n[node], trie.first_child_n[node + 1])
        if len(children):
            logps = model.logps((*prompt, *trie.tokens_to(node)))[trie.token_n[children]]
            logp_n[children] = logp_n[node] + logps - np.log(np.exp(logps).sum())
    return {leaf: float(logp_n[leaf]) for leaf in responses_of(trie)}


def assert_found(found: Found, scores: dict[int, float], num_answers: int) -> None:
    expected = ranked(scores)[:num_answers]
    assert found.leaves.tolist() == expected
    assert found.scores == pytest.approx([scores[leaf] for leaf in expected], abs=1e-9)


@fast
@given(catalogs, prompts, rows, st.integers(1, 8), st.integers(0, 99))
def test_exact_finds_the_most_probable_items_in_order(
    catalog: list[list[int]], prompts: list[list[int]], num_rows: int, num_answers: int, seed: int
) -> None:
    model, trie = ToyTree(num_rows=num_rows, seed=seed), make_trie(catalog)
    found = search_catalog(model, trie, prompts, CatalogSearch(num_answers=num_answers, max_tokens=UNLIMITED))
    assert len(found) == len(prompts)
    for prompt, one in zip(prompts, found, strict=True):
        assert_found(one, brute_force(model, trie, prompt), num_answers)
        assert one.logps == pytest.approx(one.scores, abs=1e-12)
        assert one.gap == 0.0


@fast
@given(catalogs, prompts, rows, st.integers(1, 8), st.sampled_from([0.0, 0.3, 2.0]), st.integers(0, 99))
def test_equally_probable_items_come_in_the_order_of_their_leaves(
    catalog: list[list[int]], prompts: list[list[int]], num_rows: int, num_answers: int, scale: float, seed: int
) -> None:
    """Log-probabilities are quarters, so that many are equal; scale 0 makes all of them equal."""
    model, trie = ToyTree(num_rows=num_rows, scale=scale, seed=seed, grid=0.25), make_trie(catalog)
    found = search_catalog(model, trie, prompts, CatalogSearch(num_answers=num_answers, max_tokens=UNLIMITED))
    for prompt, one in zip(prompts, found, strict=True):
        assert_found(one, brute_force(model, trie, prompt), num_answers)


@pytest.mark.parametrize("kind", ["exact", "beam", "sample"])
def test_more_answers_than_items_are_all_items(kind: Any) -> None:
    model, trie = ToyTree(), make_trie([[1, 2], [1], [3, 3, 3], [1, 2], []])
    (found,) = search_catalog(model, trie, [[1]], CatalogSearch(kind=kind, num_answers=50))
    assert sorted(found.leaves.tolist()) == sorted(responses_of(trie))
    if kind != "sample":
        assert_found(found, brute_force(model, trie, [1]), 50)


@pytest.mark.parametrize("kind", ["exact", "beam", "sample"])
@pytest.mark.parametrize("title", [[], [1], [1, 2, 3]])
def test_the_only_item_of_a_catalog_is_found(kind: Any, title: list[int]) -> None:
    model, trie = ToyTree(), make_trie([title, title])
    (found,) = search_catalog(model, trie, [[4, 2]], CatalogSearch(kind=kind, num_answers=2))
    assert found.logps == pytest.approx([model.logp([4, 2], [*title, EOS])])
    assert found.leaves.tolist() == [trie.num_nodes - 1]
    assert found.num_tokens == 0  # all of the title goes through the model with the prompt


@pytest.mark.parametrize("kind", ["exact", "beam", "sample"])
def test_a_diverged_model_is_an_error(kind: Any) -> None:
    with pytest.raises(ValueError, match="log-probability nan: the weights have diverged"):
        search_catalog(ToyTree(scale=np.nan), make_trie([[1], [2]]), [[1]], CatalogSearch(kind=kind, num_answers=2))


@pytest.mark.parametrize("kind", ["exact", "beam", "sample"])
def test_no_prompts_have_no_answers(kind: Any) -> None:
    assert search_catalog(ToyTree(), make_trie([[1]]), [], CatalogSearch(kind=kind, num_answers=2)) == []


@fast
@given(catalogs, prompts, rows, st.integers(1, 6), st.integers(0, 99))
def test_beams_are_those_of_free_beams_over_the_catalogs_tokens(
    catalog: list[list[int]], prompts: list[list[int]], num_rows: int, width: int, seed: int
) -> None:
    model, trie = ToyTree(num_rows=num_rows, seed=seed), make_trie(catalog)
    found = search_catalog(model, trie, prompts, CatalogSearch(kind="beam", num_answers=width))
    for prompt, one in zip(prompts, found, strict=True):
        expected = naive_beams(model, trie, prompt, width)
        assert [trie.tokens_to(leaf) for leaf in one.leaves] == [tokens for tokens, _ in expected]
        assert one.scores == pytest.approx([logp for _, logp in expected], abs=1e-9)
        assert one.logps == pytest.approx(one.scores, abs=1e-12)
        assert np.isnan(one.gap)


def test_beams_miss_what_exact_finds() -> None:
    """Else the tests above would not tell them apart."""
    model, trie = ToyTree(seed=1), make_trie([[a, b, c] for a in range(1, 5) for b in range(1, 5) for c in range(1, 5)])
    prompts = [[a, b] for a in range(1, 5) for b in range(1, 5)]
    exact = search_catalog(model, trie, prompts, CatalogSearch(num_answers=1, max_tokens=UNLIMITED))
    beams = search_catalog(model, trie, prompts, CatalogSearch(kind="beam", num_answers=1))
    missed = [one.logps[0] > other.logps[:1].max(initial=-np.inf) for one, other in zip(exact, beams, strict=True)]
    assert 1 < sum(missed) < len(prompts)


@fast
@given(catalogs, st.integers(1, 5), st.integers(0, 99))
def test_a_beam_as_wide_as_the_catalog_is_exact(catalog: list[list[int]], num_answers: int, seed: int) -> None:
    model, trie = ToyTree(seed=seed), make_trie(catalog)
    search = CatalogSearch(kind="beam", num_answers=num_answers, beam_width=max(num_answers, len(catalog)))
    (found,) = search_catalog(model, trie, [[1, 2]], search)
    assert_found(found, brute_force(model, trie, [1, 2]), num_answers)


@fast
@given(catalogs, prompts, rows, st.integers(1, 4), st.integers(1, 40), st.integers(0, 99))
def test_the_gap_bounds_what_a_search_within_a_budget_missed(
    catalog: list[list[int]], prompts: list[list[int]], num_rows: int, num_answers: int, max_tokens: int, seed: int
) -> None:
    model, trie = ToyTree(num_rows=num_rows, seed=seed, scale=1.0), make_trie(catalog)
    search = CatalogSearch(num_answers=num_answers, max_tokens=max_tokens)
    for prompt, one in zip(prompts, search_catalog(model, trie, prompts, search), strict=True):
        truth = brute_force(model, trie, prompt)
        assert one.gap >= 0.0
        assert one.scores == pytest.approx([truth[leaf] for leaf in one.leaves.tolist()], abs=1e-9)
        assert one.scores.tolist() == sorted(one.scores.tolist(), reverse=True)
        if one.gap == 0.0:
            assert_found(one, truth, num_answers)
        missed = max((truth[leaf] for leaf in truth if leaf not in one.leaves), default=-np.inf)
        last = one.scores[-1] if len(one.scores) == num_answers else -np.inf
        assert missed <= last + one.gap + 1e-9 or last == -np.inf < one.gap


def test_a_small_budget_leaves_gaps_and_a_large_one_none() -> None:
    model, trie = ToyTree(scale=0.5), make_trie([[a, b, c] for a in range(1, 5) for b in range(1, 5) for c in (1, 2)])
    gaps, spent = [], []
    for max_tokens in (1, 5, 10, 20, 1000):
        (found,) = search_catalog(model, trie, [[1]], CatalogSearch(num_answers=3, max_tokens=max_tokens))
        gaps.append(found.gap)
        spent.append(found.num_tokens)
    assert gaps[0] > 0.0 == gaps[-1]
    assert spent == sorted(spent)
    assert spent[0] < spent[-1]


@fast
@given(catalogs, prompts, rows, st.integers(1, 8), st.integers(0, 99))
def test_renormalized_scores_are_a_distribution_over_the_catalog(
    catalog: list[list[int]], prompts: list[list[int]], num_rows: int, num_answers: int, seed: int
) -> None:
    model, trie = ToyTree(num_rows=num_rows, seed=seed), make_trie(catalog)
    for size in (num_answers, len(catalog)):
        search = CatalogSearch(num_answers=size, max_tokens=UNLIMITED, renormalize=True)
        for prompt, one in zip(prompts, search_catalog(model, trie, prompts, search), strict=True):
            expected, logps = restricted_logps(model, trie, prompt), brute_force(model, trie, prompt)
            assert_found(one, expected, size)
            assert one.logps == pytest.approx([logps[leaf] for leaf in one.leaves.tolist()], abs=1e-9)
            if size == len(catalog):
                assert np.exp(one.scores).sum() == pytest.approx(1.0)


@fast
@given(catalogs, prompts, st.sampled_from(["exact", "beam", "sample"]), st.booleans(), rows)
def test_pruned_places_are_never_needed_again(
    catalog: list[list[int]], prompts: list[list[int]], kind: Any, renormalize: bool, num_rows: int
) -> None:
    trie, search = make_trie(catalog), CatalogSearch(kind=kind, num_answers=3, renormalize=renormalize)
    reused, kept = (
        search_catalog(ToyTree(num_rows=num_rows, reuse=reuse), trie, prompts, search) for reuse in (True, False)
    )
    assert [one.leaves.tolist() for one in reused] == [one.leaves.tolist() for one in kept]
    assert [one.scores.tolist() for one in reused] == [one.scores.tolist() for one in kept]


@pytest.mark.parametrize("kind", ["exact", "beam", "sample"])
def test_places_of_tokens_that_lead_nowhere_are_used_again(kind: Any) -> None:
    rng = np.random.default_rng(0)
    trie = make_trie(rng.integers(1, VOCAB_SIZE, (300, 10)).tolist())
    model = ToyTree(num_rows=2)
    search_catalog(
        model, trie, [[a, b] for a in range(1, 5) for b in range(1, 5)], CatalogSearch(kind=kind, num_answers=3)
    )
    assert 4 * model.num_places < model.num_tokens


@pytest.mark.parametrize("max_open", [1, 3, 20])
@pytest.mark.parametrize("kind", ["exact", "sample"])
def test_nodes_that_wait_unsorted_are_not_forgotten(monkeypatch: pytest.MonkeyPatch, max_open: int, kind: Any) -> None:
    """A root of two thousand children, far more than are kept sorted."""
    vocab_size = 2001
    rng = np.random.default_rng(0)
    trie = make_trie([[first, *rng.integers(1, 9, rng.integers(0, 4)).tolist()] for first in range(1, vocab_size)] * 2)
    model, prompts = ToyTree(vocab_size, scale=0.3, num_rows=2), [[1], [2], [3]]
    search = CatalogSearch(kind=kind, num_answers=5, max_tokens=UNLIMITED)
    expected = search_catalog(model, trie, prompts, search)
    monkeypatch.setattr(search_module, "_MAX_OPEN", max_open)
    waited = []
    monkeypatch.setattr(search_module._Run, "_recall", recording(search_module._Run._recall, waited))
    found = search_catalog(model, trie, prompts, search)
    assert [one.leaves.tolist() for one in found] == [one.leaves.tolist() for one in expected]
    assert [one.scores.tolist() for one in found] == [one.scores.tolist() for one in expected]
    assert all(one.gap == 0.0 for one in found)
    assert waited
    if kind == "exact":
        for prompt, one in zip(prompts, found, strict=True):
            assert_found(one, brute_force(model, trie, prompt), 5)


def recording(method: Any, calls: list[Any]) -> Any:
    def recorded(*arguments: Any) -> Any:
        calls.append(arguments)
        return method(*arguments)

    return recorded


@fast
@given(catalogs, prompts, rows, st.integers(1, 6), st.integers(1, 30), st.integers(1, 3), st.booleans())
def test_small_sorted_parts_change_nothing(
    catalog: list[list[int]],
    prompts: list[list[int]],
    num_rows: int,
    num_answers: int,
    max_tokens: int,
    max_open: int,
    uniform: bool,
) -> None:
    model = ToyTree(num_rows=num_rows, scale=0.0 if uniform else 2.0, grid=0.25)
    trie = make_trie(catalog)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(search_module, "_MAX_OPEN", max_open)
        found = search_catalog(model, trie, prompts, CatalogSearch(num_answers=num_answers, max_tokens=UNLIMITED))
        short = search_catalog(model, trie, prompts, CatalogSearch(num_answers=num_answers, max_tokens=max_tokens))
    for prompt, one, other in zip(prompts, found, short, strict=True):
        truth = brute_force(model, trie, prompt)
        assert_found(one, truth, num_answers)
        if other.gap == 0.0:
            assert other.scores.tolist() == one.scores.tolist()
        elif len(other.scores) == num_answers:
            assert max(truth[leaf] for leaf in truth if leaf not in other.leaves) <= other.scores[-1] + other.gap


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_answers": 0}, "num_answers=0 must be between 1 and the beam width, 0"),
        ({"kind": "beam", "num_answers": 6, "beam_width": 5}, "num_answers=6 .* beam width, 5; raise beam_width"),
        ({"num_answers": 1, "max_tokens": 0}, "max_tokens=0 must be at least 1"),
        ({"num_answers": 1, "temperature": 0.0}, r"temperature=0\.0 above 0"),
        ({"num_answers": 1, "temperature": float("nan")}, "temperature=nan above 0"),
        ({"num_answers": 1, "lm_weight": 1.5}, r"lm_weight=1\.5 between 0 and 1"),
        ({"num_answers": 1, "lm_weight": -0.1}, r"lm_weight=-0\.1 between 0 and 1"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CatalogSearch(**wrong)


def test_only_beam_has_a_width_of_its_own() -> None:
    assert CatalogSearch(kind="beam", num_answers=3, beam_width=7).width == 7
    assert CatalogSearch(kind="beam", num_answers=3).width == 3
    assert CatalogSearch(num_answers=3, beam_width=7).width == 3
