"""Search with a collaborative model beside the language model (D3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprec_ray.decoding.catalog.request import CatalogSearch
from sprec_ray.decoding.catalog.search import search_catalog
from sprec_ray.decoding.catalog.trie import Trie
from tests.decoding.toy_tree import ToyTree, catalogs, make_trie, prompts, ranked, responses_of

fast = settings(deadline=None, max_examples=60)


def make_item_logps(num_prompts: int, trie: Trie, *, seed: int = 0, spread: float = 2.0) -> Any:
    logits = spread * np.random.default_rng(seed).standard_normal((num_prompts, trie.num_items))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def logp_of_leaf(trie: Trie, item_logps: Any, leaf: int) -> float:
    """Items with the same tokens count together."""
    return float(np.logaddexp.reduce(item_logps[list(trie.items_below(leaf))]))


@fast
@given(
    catalogs, prompts, st.integers(1, 5), st.integers(1, 6), st.sampled_from([0.0, 0.5, 0.8, 1.0]), st.integers(0, 99)
)
def test_exact_finds_the_best_mixed_scores(
    catalog: list[list[int]], prompts: list[list[int]], num_rows: int, num_answers: int, weight: float, seed: int
) -> None:
    """Along a path the collaborative terms telescope: g log p_LM(item) + (1 - g) log p_CF(item)."""
    model, trie = ToyTree(num_rows=num_rows, seed=seed), make_trie(catalog)
    item_logps = make_item_logps(len(prompts), trie, seed=seed)
    search = CatalogSearch(num_answers=num_answers, max_tokens=10**6, lm_weight=weight)
    found = search_catalog(model, trie, prompts, search, item_logps=item_logps)
    for prompt, own, one in zip(prompts, item_logps, found, strict=True):
        scores, logps = {}, {}
        for leaf, response in responses_of(trie).items():
            logps[leaf] = model.logp(prompt, response)
            scores[leaf] = weight * logps[leaf] + (1 - weight) * logp_of_leaf(trie, own, leaf)
        assert one.leaves.tolist() == ranked(scores)[:num_answers]
        assert one.scores == pytest.approx([scores[leaf] for leaf in one.leaves.tolist()], abs=1e-9)
        assert one.logps == pytest.approx([logps[leaf] for leaf in one.leaves.tolist()], abs=1e-9)
        assert one.gap == 0.0


@pytest.mark.parametrize("kind", ["exact", "beam"])
def test_all_weight_on_the_language_model_is_the_plain_search(kind: Any) -> None:
    rng = np.random.default_rng(0)
    trie = make_trie([rng.integers(1, 5, rng.integers(0, 6)).tolist() for _ in range(40)])
    prompts, search = [[1], [2, 3], [4]], CatalogSearch(kind=kind, num_answers=6)
    plain = search_catalog(ToyTree(), trie, prompts, search)
    mixed = search_catalog(ToyTree(), trie, prompts, search, item_logps=make_item_logps(3, trie))
    assert [one.leaves.tolist() for one in mixed] == [one.leaves.tolist() for one in plain]
    assert [one.scores.tolist() for one in mixed] == [one.scores.tolist() for one in plain]


def test_the_constant_of_item_logps_does_not_matter() -> None:
    trie = make_trie([[1, 2], [1], [3]])
    item_logps, search = make_item_logps(1, trie), CatalogSearch(num_answers=3, lm_weight=0.5)
    found = [search_catalog(ToyTree(), trie, [[1]], search, item_logps=item_logps + shift)[0] for shift in (0, -1e4, 7)]
    for one in found[1:]:
        assert one.scores == pytest.approx(found[0].scores, abs=1e-9)


@pytest.mark.parametrize("kind", ["exact", "beam"])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_items_without_mass_are_never_answered(kind: Any, weight: float) -> None:
    trie = make_trie([[1, 2], [1, 3], [2], [3, 3], [3, 4]])
    item_logps = np.log(
        [[0.5, 0.0, 0.0, 0.25, 0.25]], where=[[True, False, False, True, True]], out=np.full((1, 5), -np.inf)
    )
    search = CatalogSearch(kind=kind, num_answers=5, lm_weight=weight)
    (found,) = search_catalog(ToyTree(), trie, [[1]], search, item_logps=item_logps)
    items = [item for leaf in found.leaves.tolist() for item in trie.items_below(leaf)]
    assert sorted(items) == [0, 3, 4]


@pytest.mark.parametrize("rare", [-30.0, -60.0, -300.0])
def test_rare_items_keep_their_log_probability(rare: float) -> None:
    """Far below what a difference of cumulated probabilities can resolve."""
    trie = make_trie([[1], [2], [3, 1], [3, 2], [4]])
    item_logps = np.array([[0.0, rare, rare - 1, rare - 2, -1.0]])
    item_logps -= np.logaddexp.reduce(item_logps[0])
    (found,) = search_catalog(
        ToyTree(), trie, [[1]], CatalogSearch(num_answers=5, lm_weight=0.0), item_logps=item_logps
    )
    assert [trie.items_below(leaf) for leaf in found.leaves.tolist()] == [(0,), (4,), (1,), (2,), (3,)]
    assert found.scores == pytest.approx(item_logps[0][[0, 4, 1, 2, 3]], abs=1e-9)


@pytest.mark.parametrize(("kind", "shape"), [("exact", (2, 4)), ("beam", (1, 3)), ("exact", (3,)), ("sample", (2, 3))])
def test_item_logps_of_another_shape_or_kind_are_refused(kind: Any, shape: tuple[int, ...]) -> None:
    trie = make_trie([[1], [2], [3]])
    with pytest.raises(ValueError, match=r"need one row per prompt and one column per item, \(2, 3\)") as error:
        search_catalog(ToyTree(), trie, [[1], [2]], CatalogSearch(kind=kind, num_answers=1), item_logps=np.zeros(shape))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_item_logps_that_are_no_log_probabilities_are_refused(wrong: float) -> None:
    item_logps = np.array([[0.0, wrong, -np.inf]])
    with pytest.raises(ValueError, match="item_logps hold NaN or infinity"):
        search_catalog(
            ToyTree(),
            make_trie([[1], [2], [3]]),
            [[1]],
            CatalogSearch(num_answers=1, lm_weight=0.5),
            item_logps=item_logps,
        )
