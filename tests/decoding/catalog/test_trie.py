from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprec_ray.decoding.catalog.trie import Trie, build_trie
from tests.decoding.toy_tree import EOS, catalogs, make_trie

fast = settings(deadline=None, max_examples=100)


def naive_nodes(catalog: list[list[int]]) -> list[tuple[int, ...]]:
    """Every beginning of a response, level by level, in the order of the tokens."""
    responses = [(*title, EOS) for title in catalog]
    beginnings = {response[:end] for response in responses for end in range(len(response) + 1)}
    return sorted(beginnings, key=lambda tokens: (len(tokens), tokens))


def some_trie() -> Trie:
    return make_trie([[5, 3], [5], [7, 7, 7], [5, 3]])


@fast
@given(catalogs)
def test_nodes_are_the_beginnings_of_responses_in_order(catalog: list[list[int]]) -> None:
    trie, nodes = make_trie(catalog), naive_nodes(catalog)
    assert trie.num_nodes == len(nodes)
    assert [trie.tokens_to(node) for node in range(trie.num_nodes)] == nodes
    assert trie.token_n.tolist() == [-1, *(tokens[-1] for tokens in nodes[1:])]


@fast
@given(catalogs)
def test_children_of_a_node_are_neighbours_in_the_order_of_their_tokens(catalog: list[list[int]]) -> None:
    trie, nodes = make_trie(catalog), naive_nodes(catalog)
    assert trie.num_children_n.tolist() == np.diff(trie.first_child_n).tolist()
    for node, tokens in enumerate(nodes):
        children = range(trie.first_child_n[node], trie.first_child_n[node + 1])
        expected = [other for other in nodes if len(other) == len(tokens) + 1 and other[:-1] == tokens]
        assert [nodes[child] for child in children] == expected
        assert trie.parent_of(list(children)).tolist() == [node] * len(children)


@fast
@given(catalogs)
def test_items_below_a_node_are_those_that_begin_with_its_tokens(catalog: list[list[int]]) -> None:
    trie = make_trie(catalog)
    for node, tokens in enumerate(naive_nodes(catalog)):
        expected = [item for item, title in enumerate(catalog) if (*title, EOS)[: len(tokens)] == tokens]
        assert sorted(trie.items_below(node)) == expected
    assert trie.items_below(0) == tuple(sorted(range(len(catalog)), key=lambda item: ((*catalog[item], EOS), item)))
    assert trie.num_items == len(catalog)


@fast
@given(catalogs)
def test_every_item_has_the_leaf_of_its_tokens(catalog: list[list[int]]) -> None:
    trie = make_trie(catalog)
    leaves = trie.leaf_of_items().tolist()
    assert [trie.tokens_to(leaf) for leaf in leaves] == [(*title, EOS) for title in catalog]
    assert set(leaves) == set(np.flatnonzero(trie.num_children_n == 0).tolist())


@fast
@given(catalogs)
def test_levels_hold_the_nodes_of_equal_length(catalog: list[list[int]]) -> None:
    trie, nodes = make_trie(catalog), naive_nodes(catalog)
    assert [[nodes[node] for node in range(*level)] for level in trie.levels()] == [
        list(level) for _, level in itertools.groupby(nodes, key=len)
    ]
    assert trie.depth == max(len(title) for title in catalog) + 1


def test_the_example_of_the_docstring() -> None:
    trie = build_trie([(5, 1), (5, 6, 1)], eos_token_id=1)
    assert trie.token_n.tolist() == [-1, 5, 1, 6, 1]
    assert trie.first_child_n.tolist() == [1, 2, 4, 4, 5, 5]
    assert [trie.items_below(node) for node in range(5)] == [(0, 1), (0, 1), (0,), (1,), (1,)]
    assert trie.leaf_of_items().tolist() == [2, 4]


def test_equal_titles_share_a_leaf_that_names_them_all() -> None:
    trie = make_trie([[5, 3], [7], [5, 3], [5, 3]])
    leaves = trie.leaf_of_items()
    assert len(set(leaves.tolist())) == 2
    assert trie.items_below(leaves[0]) == (0, 2, 3)
    assert trie.items_below(leaves[1]) == (1,)


def test_a_title_that_begins_another_ends_in_an_eos_beside_its_next_token() -> None:
    trie = make_trie([[5, 3], [5]])
    (five,) = range(trie.first_child_n[0], trie.first_child_n[1])
    children = range(trie.first_child_n[five], trie.first_child_n[five + 1])
    assert trie.token_n[children].tolist() == [EOS, 3]
    assert trie.items_below(children[0]) == (1,)
    assert trie.num_children_n[children[0]] == 0


def test_tokens_may_be_as_large_as_vocabularies() -> None:
    trie = build_trie([(262_143, 1), (262_143, 262_142, 1), (3, 1)], eos_token_id=1)
    assert [trie.tokens_to(leaf) for leaf in trie.leaf_of_items()] == [(262_143, 1), (262_143, 262_142, 1), (3, 1)]


@settings(deadline=None, max_examples=20)
@given(catalogs)
def test_what_is_written_is_read_memory_mapped(
    tmp_path_factory: pytest.TempPathFactory, catalog: list[list[int]]
) -> None:
    trie, folder = make_trie(catalog), tmp_path_factory.mktemp("trie") / "new" / "folder"
    trie.write(folder, key="catalog and tokenizer")
    read = Trie.read(folder, key="catalog and tokenizer")
    assert read is not None
    for name in Trie.__slots__:
        kept = getattr(read, name)
        assert isinstance(kept, np.memmap)
        assert kept.dtype == getattr(trie, name).dtype
        assert kept.tolist() == getattr(trie, name).tolist()
    assert [read.tokens_to(leaf) for leaf in read.leaf_of_items()] == [(*title, EOS) for title in catalog]


def test_a_trie_of_something_else_is_none(tmp_path: Path) -> None:
    some_trie().write(tmp_path, key="one")
    assert Trie.read(tmp_path, key="another") is None
    assert Trie.read(tmp_path / "nowhere", key="one") is None


def test_writing_again_replaces_a_trie(tmp_path: Path) -> None:
    some_trie().write(tmp_path, key="one")
    make_trie([[3]]).write(tmp_path, key="two")
    assert Trie.read(tmp_path, key="one") is None
    read = Trie.read(tmp_path, key="two")
    assert read is not None
    assert read.num_items == 1


@pytest.mark.parametrize("name", ["trie.json", *(f"{name}.npy" for name in Trie.__slots__)])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "garbage"])
def test_a_damaged_trie_is_none(tmp_path: Path, name: str, damage: str) -> None:
    some_trie().write(tmp_path, key="one")
    path = tmp_path / name
    if damage == "missing":
        path.unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "cut": whole[:-3], "garbage": b"\x00garbage" * 40}[damage])
    assert Trie.read(tmp_path, key="one") is None


def test_a_trie_whose_writing_was_cut_off_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some_trie().write(tmp_path, key="one")
    with monkeypatch.context() as patched:
        patched.setattr(np, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="full"):
            some_trie().write(tmp_path, key="one")
    assert Trie.read(tmp_path, key="one") is None


def one_sentence(error: pytest.ExceptionInfo[ValueError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 250
    return message


def test_an_empty_catalog_is_an_error() -> None:
    with pytest.raises(ValueError, match="no titles") as error:
        build_trie([], eos_token_id=EOS)
    one_sentence(error)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_title_without_tokens_is_named(place: int) -> None:
    responses = [(5, EOS), (7, EOS)]
    responses.insert(place, ())
    with pytest.raises(ValueError, match=f"title number {place} of the catalogue has no tokens") as error:
        build_trie(responses, eos_token_id=EOS)
    one_sentence(error)


@pytest.mark.parametrize("wrong", [(5,), (5, EOS, 3), (EOS, 5, EOS), (EOS, EOS)])
def test_a_title_must_end_in_its_only_eos(wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^1 titles of the catalogue \(number 1\) hold the end") as error:
        build_trie([(5, EOS), wrong, (7, 7, EOS)], eos_token_id=EOS)
    one_sentence(error)


def test_many_wrong_titles_are_counted_and_some_named() -> None:
    with pytest.raises(ValueError, match=r"^40 titles of the catalogue \(number 1, 2, 3, 4, 5, \.\.\.\)") as error:
        build_trie([(5, EOS)] + [(5,)] * 40, eos_token_id=EOS)
    one_sentence(error)


@given(st.integers(0, 2**32))
@settings(deadline=None, max_examples=5)
def test_a_token_costs_tens_of_bytes_at_most(seed: int) -> None:
    rng = np.random.default_rng(seed)
    catalog = [rng.integers(1, 1000, rng.integers(1, 12)).tolist() for _ in range(500)]
    trie = make_trie(catalog)
    num_bytes = sum(getattr(trie, name).nbytes for name in Trie.__slots__)
    assert num_bytes <= 24 * sum(len(title) + 1 for title in catalog)
