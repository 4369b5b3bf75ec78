"""Samples without replacement."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from sprec_ray.decoding.catalog.request import CatalogSearch
from sprec_ray.decoding.catalog.search import Found, search_catalog
from sprec_ray.decoding.catalog.trie import Trie
from tests.decoding.toy_tree import ToyTree, make_trie, responses_of

NUM_SAMPLES = 4000
PROMPT = [1, 2]


def some_trie() -> Trie:
    """Seven leaves at several depths, with forced tokens and an item that begins others."""
    return make_trie([[1, 2], [1, 2, 3, 4, 1], [1], [3, 3, 3], [4], [4, 1], [4, 1, 2]])


def law(model: ToyTree, trie: Trie, temperature: float) -> dict[int, float]:
    """The probability of every leaf, each step among the tokens that the catalogue allows."""
    mass_n = np.ones(trie.num_nodes)
    for node in range(trie.num_nodes):
        children = np.arange(trie.first_child_n[node], trie.first_child_n[node + 1])
        if len(children):
            logits = model.logps((*PROMPT, *trie.tokens_to(node)))[trie.token_n[children]] / temperature
            mass_n[children] = mass_n[node] * np.exp(logits) / np.exp(logits).sum()
    return {leaf: float(mass_n[leaf]) for leaf in responses_of(trie)}


def draw(num_answers: int, *, num: int, temperature: float = 1.0, num_rows: int = 64, seed: int = 0) -> list[Found]:
    search = CatalogSearch(kind="sample", num_answers=num_answers, temperature=temperature, seed=seed)
    return search_catalog(ToyTree(num_rows=num_rows, scale=0.7), some_trie(), [PROMPT] * num, search)


def chi_square(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> tuple[float, int]:
    """The statistic and its degrees of freedom; what is expected less than five times counts together."""
    total = sum(counts.values())
    common = {key for key, mass in expected.items() if total * mass >= 5}
    pairs = [(counts[key], total * expected[key]) for key in common]
    rest = total - sum(count for count, _ in pairs), total - sum(mean for _, mean in pairs)
    pairs += [rest] if rest[1] > 1 else []
    return sum((count - mean) ** 2 / mean for count, mean in pairs), len(pairs) - 1


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_answers_are_drawn_one_after_the_other_without_replacement(temperature: float) -> None:
    """P(first = i) = p_i and P(second = j | first = i) = p_j / (1 - p_i)."""
    trie = some_trie()
    masses = law(ToyTree(scale=0.7), trie, temperature)
    found = draw(2, num=NUM_SAMPLES, temperature=temperature)
    firsts = Counter((int(one.leaves[0]),) for one in found)
    pairs = Counter((int(one.leaves[0]), int(one.leaves[1])) for one in found)
    expected = {(i, j): masses[i] * masses[j] / (1 - masses[i]) for i in masses for j in masses if i != j}
    for counts, probabilities in ((firsts, {(i,): mass for i, mass in masses.items()}), (pairs, expected)):
        statistic, freedom = chi_square(counts, probabilities)
        assert freedom >= 4
        assert statistic < freedom + 4 * np.sqrt(2 * freedom)  # four standard deviations
    other = law(ToyTree(scale=0.7), trie, 2 * temperature)
    assert chi_square(firsts, {(i,): mass for i, mass in other.items()})[0] > 30  # so the test can fail


def test_a_sample_holds_no_item_twice() -> None:
    for one in draw(7, num=50):
        assert sorted(one.leaves.tolist()) == sorted(responses_of(some_trie()))
        assert one.scores.tolist() == sorted(one.scores.tolist(), reverse=True)
        assert one.gap == 0.0


def test_a_smaller_sample_is_the_beginning_of_a_larger_one() -> None:
    for few, many in zip(draw(2, num=50), draw(5, num=50), strict=True):
        assert few.leaves.tolist() == many.leaves[:2].tolist()


def test_log_probabilities_are_those_of_the_whole_vocabulary() -> None:
    model, trie = ToyTree(scale=0.7), some_trie()
    for one in draw(3, num=10, temperature=2.0):
        assert one.logps == pytest.approx([model.logp(PROMPT, trie.tokens_to(leaf)) for leaf in one.leaves.tolist()])


def test_neither_rows_nor_neighbours_change_a_sample() -> None:
    prompts = [[1], [2, 3], [4], [1, 1, 1], [3]]
    search, trie = CatalogSearch(kind="sample", num_answers=3), some_trie()
    together = search_catalog(ToyTree(num_rows=5), trie, prompts, search, seeds=[7, 3, 9, 1, 5])
    for num_rows in (1, 2, 4):
        found = search_catalog(ToyTree(num_rows=num_rows), trie, prompts, search, seeds=[7, 3, 9, 1, 5])
        assert [one.leaves.tolist() for one in found] == [one.leaves.tolist() for one in together]
        assert [one.scores.tolist() for one in found] == [one.scores.tolist() for one in together]
    for number, seed in enumerate([7, 3, 9, 1, 5]):
        (alone,) = search_catalog(ToyTree(), trie, [prompts[number]], search, seeds=[seed])
        assert alone.leaves.tolist() == together[number].leaves.tolist()


def test_seeds_count_from_zero_unless_given() -> None:
    search, trie = CatalogSearch(kind="sample", num_answers=3), some_trie()
    plain, given = (search_catalog(ToyTree(), trie, [[1]] * 4, search, seeds=seeds) for seeds in (None, range(4)))
    assert [one.scores.tolist() for one in plain] == [one.scores.tolist() for one in given]


def test_another_seed_is_another_sample() -> None:
    found = [[tuple(one.leaves.tolist()) for one in draw(3, num=30, seed=seed)] for seed in (0, 1, 0)]
    assert found[0] == found[2]
    assert sum(one != other for one, other in zip(found[0], found[1], strict=True)) > 15
    assert len(set(found[0])) > 10  # prompts of one call are drawn independently
