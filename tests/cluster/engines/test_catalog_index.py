from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from sprec_ray.cluster.engines.catalog_index import CatalogIndex, catalog_index
from sprec_ray.data.prompts import parse_response
from sprec_ray.data.tokens import TokenEncoder
from sprec_ray.decoding.catalog.search import Found
from sprec_ray.decoding.catalog.trie import build_trie

TITLES = (
    "Dune",
    "Emma",
    'A Child Called "It"',
    "  spaces  inside ",
    "Les Misérables",
    "日本 📚",
    "<b>bold</b>",
    "dune",
)


@pytest.fixture(scope="module")
def encoder(tiny: Any) -> TokenEncoder:
    tokenizer = AutoTokenizer.from_pretrained(tiny.path)
    return TokenEncoder(tokenizer, template="short", noun="book", max_prompt_tokens=100, max_response_tokens=20)


def found(*leaves: int) -> Found:
    return Found(np.array(leaves), -np.arange(1.0, len(leaves) + 1), -np.arange(1.0, len(leaves) + 1), 0.0, 3)


def test_every_title_is_answered_as_the_catalogue_writes_it(encoder: TokenEncoder, tmp_path: Path) -> None:
    index = catalog_index(encoder, TITLES, folder=tmp_path, max_tokens=200)
    leaves = index.trie.leaf_of_items()
    hypotheses = index.hypotheses(found(*leaves.tolist()))
    assert [parse_response(hypothesis.text) for hypothesis in hypotheses] == list(TITLES)
    assert [hypothesis.num_tokens for hypothesis in hypotheses] == [len(encoder.response(title)) for title in TITLES]
    assert all(hypothesis.finished and not hypothesis.same_tokens for hypothesis in hypotheses)
    assert [hypothesis.logp for hypothesis in hypotheses] == [-1.0 - place for place in range(len(TITLES))]


def test_the_index_is_built_once_and_mapped_into_memory(
    encoder: TokenEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = catalog_index(encoder, TITLES, folder=tmp_path, max_tokens=200)
    monkeypatch.setattr("sprec_ray.cluster.engines.catalog_index.build_trie", None)
    again = catalog_index(encoder, TITLES, folder=tmp_path, max_tokens=200)
    assert isinstance(again.trie.token_n, np.memmap)
    assert again.titles == built.titles
    assert np.array_equal(again.trie.token_n, built.trie.token_n)


def test_other_titles_have_another_index(encoder: TokenEncoder, tmp_path: Path) -> None:
    catalog_index(encoder, TITLES, folder=tmp_path, max_tokens=200)
    assert catalog_index(encoder, TITLES[:2], folder=tmp_path, max_tokens=200).titles == TITLES[:2]
    assert len(list(tmp_path.iterdir())) == 2


def test_titles_that_leave_no_room_are_left_out_and_counted(
    encoder: TokenEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        index = catalog_index(encoder, ("Dune", "very " * 50), folder=tmp_path, max_tokens=20)
    assert index.titles == ("Dune",)
    assert "1 titles have more than 20 tokens and are never recommended (very very" in caplog.text


def test_titles_of_the_same_tokens_are_one_answer_that_names_them_all(caplog: pytest.LogCaptureFixture) -> None:
    index = CatalogIndex(build_trie([[5, 1], [6, 1], [5, 1]], eos_token_id=1), ("Dune", "Emma", "DUNE"))
    (hypothesis,) = index.hypotheses(found(int(index.trie.leaf_of_items()[0])))
    assert (parse_response(hypothesis.text), hypothesis.same_tokens) == ("Dune", ("DUNE",))


def test_a_tokenizer_that_cannot_tell_titles_apart_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Deaf:
        """Knows one word."""

        eos_token_id = 1

        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [[2] for _ in texts]}

        def get_vocab(self) -> dict[str, int]:
            return {"word": 2}

    deaf = TokenEncoder(Deaf(), template="short", noun="book", max_prompt_tokens=9, max_response_tokens=9)
    with caplog.at_level(logging.WARNING):
        index = catalog_index(deaf, ("Dune", "Emma"), folder=tmp_path, max_tokens=9)
    assert "1 titles have the tokens of another one" in caplog.text
    assert index.trie.items_below(int(index.trie.leaf_of_items()[0])) == (0, 1)


def test_a_ranking_keeps_the_best_titles_and_says_where_the_target_stands() -> None:
    """By hand: Emma is the most probable, Dune and DUNE share the second place and their tokens, Ulysses comes last."""
    trie = build_trie([[5, 1], [6, 1], [5, 1], [7, 1]], eos_token_id=1)
    index = CatalogIndex(trie, ("Dune", "Emma", "DUNE", "Ulysses"))
    logps = np.array([[-2.0, -1.0, -2.0, -3.0]] * 3)
    first, second, unknown = index.ranked(logps, logps, ["Ulysses", "DUNE", "1984"], 2)
    assert [parse_response(answer.text) for answer in first["hypotheses"]] == ["Emma", "Dune"]
    assert [answer.logp for answer in first["hypotheses"]] == [-1.0, -2.0]
    assert (first["target_rank"], first["target_logp"]) == (3, -3.0)
    assert (second["target_rank"], second["target_logp"]) == (1, -2.0)
    assert "target_rank" not in unknown


def test_an_empty_catalogue_is_one_clear_sentence(encoder: TokenEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^the catalogue has no titles; there is nothing to recommend$"):
        catalog_index(encoder, (), folder=tmp_path, max_tokens=20)


def test_titles_that_are_all_too_long_are_not_called_none(encoder: TokenEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^all 2 titles .* more than 3 tokens.*; raise model\.max_prompt_tokens$"):
        catalog_index(encoder, ("Dune", "Emma"), folder=tmp_path, max_tokens=3)


def test_a_title_with_the_end_of_sequence_inside_is_named(encoder: TokenEncoder, tmp_path: Path) -> None:
    titles = ("long " * 50, "Dune", f"Emma{encoder.tokenizer.eos_token}")
    with pytest.raises(ValueError, match=r"^1 titles of the catalogue \('Emma</s>'\) hold the end-of-sequence token"):
        catalog_index(encoder, titles, folder=tmp_path, max_tokens=40)
