from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprec_ray.decoding.catalog import ranking
from sprec_ray.decoding.catalog.ranking import rank_catalog, score_responses
from tests.decoding.toy_tree import EOS, ToyTree, catalogs, make_trie, prompts, titles

fast = settings(deadline=None, max_examples=60)


@fast
@given(catalogs, prompts, st.integers(1, 5), st.sampled_from([1, 2, 5, 256]), st.booleans())
def test_ranks_are_the_sums_of_every_items_log_probabilities(
    catalog: list[list[int]], prompts: list[list[int]], num_rows: int, nodes_at_once: int, reuse: bool
) -> None:
    model = ToyTree(num_rows=num_rows, reuse=reuse)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ranking, "_NODES_AT_ONCE", nodes_at_once)
        logps = rank_catalog(model, make_trie(catalog), prompts)
    assert logps.shape == (len(prompts), len(catalog))
    expected = [[model.logp(prompt, (*title, EOS)) for title in catalog] for prompt in prompts]
    assert logps.tolist() == [pytest.approx(row, abs=1e-9) for row in expected]


@pytest.mark.parametrize("nodes_at_once", [1, 10, 256])
def test_portions_hold_every_inner_node_and_little_of_it_twice(
    monkeypatch: pytest.MonkeyPatch, nodes_at_once: int
) -> None:
    rng = np.random.default_rng(0)
    trie = make_trie(rng.integers(1, 5, (200, 7)).tolist())
    monkeypatch.setattr(ranking, "_NODES_AT_ONCE", nodes_at_once)
    portions = [nodes.tolist() for nodes, _ in ranking._portions(trie)]
    inner = np.flatnonzero(trie.num_children_n)[1:].tolist()
    assert sorted({node for nodes in portions for node in nodes}) == inner
    assert all(len(nodes) <= max(2 * nodes_at_once, trie.depth) for nodes in portions)


@fast
@given(st.lists(titles, min_size=1, max_size=8), st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_responses_of_any_lengths_are_scored_side_by_side(responses: list[list[int]], prompt: list[int]) -> None:
    model = ToyTree(num_rows=1)
    found = score_responses(model, prompt, [(*response, EOS) for response in responses])
    assert found == pytest.approx([model.logp(prompt, (*response, EOS)) for response in responses], abs=1e-9)
    assert model.num_passes <= 2


def test_a_diverged_model_has_no_ranking() -> None:
    with pytest.raises(ValueError, match="the weights have diverged"):
        rank_catalog(ToyTree(scale=np.nan), make_trie([[1], [2, 3]]), [[1]])
