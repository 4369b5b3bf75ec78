"""List diversity by genre and word bias: hand-worked values and naive second implementations."""

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprec_ray.metrics import content
from sprec_ray.metrics.content import genre_sets, ild, title_words, token_bias, word_counts
from sprec_ray.metrics.places import place_counts

TITLES = ["Dune", "Dune Messiah", "The End", "The End of the Dune", "!!!"]
GENRES = {"Dune": ["sf"], "Dune Messiah": ["sf", "drama"], "The End": ["noir"], "The End of the Dune": ["drama", "sf"]}
SETS = genre_sets(TITLES, GENRES)


def test_list_diversity_by_hand():
    """k = 3. Row 0: {sf}, {sf, drama}, {noir}: distances 1/2, 1, 1. Row 1: the same set twice and no genres: 0.

    Row 2: one item with genres, so no pair; row 3: an item twice, and a place outside the catalogue: 0.
    """
    ranked = np.array([[0, 1, 2, 0], [1, 3, 4, 0], [0, 4, -1, 1], [2, 2, 9, 0]])
    np.testing.assert_allclose(ild(ranked, SETS, k=3), [2.5 / 3, 0, math.nan, 0])
    assert np.isnan(ild(ranked, SETS, k=1)).all()
    assert np.isnan(ild(ranked, genre_sets(TITLES, {}), k=3)).all()
    with pytest.raises(ValueError, match="k=5 needs"):
        ild(ranked, SETS, k=5)


def test_more_than_64_genres_take_several_words():
    """Item i has genres i .. i + 69 of 71: two neighbours share 69 of 71."""
    names = [f"g{number:02d}" for number in range(71)]
    sets = genre_sets(["a", "b"], {"a": names[:70], "b": names[1:]})
    assert sets.shape == (2, 2)
    np.testing.assert_allclose(ild(np.array([[0, 1]]), sets, k=2), [1 - 69 / 71])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.frozensets(st.sampled_from("ABCDE")), min_size=4, max_size=4),
    st.lists(st.lists(st.integers(-1, 5), min_size=4, max_size=4), min_size=1, max_size=6),
    st.integers(1, 4),
)
def test_list_diversity_equals_a_naive_implementation(sets, ranked, k):
    expected = []
    for row in ranked:
        found = [sets[item] for item in row[:k] if 0 <= item < len(sets) and sets[item]]
        distances = [1 - len(a & b) / len(a | b) for a, b in combinations(found, 2)]
        expected.append(sum(distances) / len(distances) if distances else math.nan)
    titles = list("wxyz")
    found = ild(np.array(ranked), genre_sets(titles, dict(zip(titles, sets, strict=True))), k=k)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_words_of_titles():
    assert title_words("Rock'n'Roll: HIGH School (1979)") == ["rock'n'roll", "high", "school", "1979"]
    assert title_words("Ödipus auf CÔTÉ d’Azur") == ["ödipus", "auf", "côté", "d’azur"]
    assert title_words("???") == []


def test_token_bias_by_hand(monkeypatch):
    """Two frequent words. History: The End twice, Dune once, an unknown title.

    Occurrences: the 2, end 2, dune 1, so the frequent words are "end" and "the"; of five words four are frequent.
    Recommended: Dune (one word, none frequent), The End of the Dune (five words, three frequent: the, end, the), a
    title without words, one outside the catalogue: 3/6. The bias is 3/6 - 4/5.
    """
    monkeypatch.setattr(content, "NUM_FREQUENT_WORDS", 2)
    history = np.array([2, 0, 2, -1])
    words = word_counts(TITLES, history)
    assert words.tolist() == [[1, 0], [2, 0], [2, 2], [5, 3], [0, 0]]
    ranked = np.array([[0, 3], [4, 9]])
    assert token_bias(place_counts(ranked, k=2), history, words)[0] == pytest.approx(3 / 6 - 4 / 5)


def test_ties_of_words_go_by_the_word(monkeypatch):
    monkeypatch.setattr(content, "NUM_FREQUENT_WORDS", 1)
    assert word_counts(["b", "a"], np.array([0, 1])).tolist() == [[1, 0], [1, 1]]


def test_token_bias_is_undefined_without_words():
    words = word_counts(TITLES, np.array([4]))
    assert np.isnan(token_bias(place_counts(np.array([[0]]), k=1), np.array([4]), words)).all()
    words = word_counts(TITLES, np.array([0]))
    assert np.isnan(token_bias(place_counts(np.array([[4]]), k=1), np.array([0]), words)).all()
    assert word_counts([], np.array([], dtype=np.int64)).shape == (0, 2)


def test_recommending_the_histories_has_no_token_bias():
    history = np.array([0, 1, 2, 3, 3])
    assert token_bias(place_counts(history[:, None], k=1), history, word_counts(TITLES, history))[0] == 0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text("ab c", max_size=6), min_size=3, max_size=3, unique=True),
    st.lists(st.integers(-1, 2), min_size=1, max_size=6),
    st.lists(st.integers(-1, 4), min_size=1, max_size=6),
    st.integers(1, 3),
)
def test_token_bias_equals_a_naive_implementation(titles, history, recommended, num_frequent):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "NUM_FREQUENT_WORDS", num_frequent)
        words = word_counts(titles, np.array(history))
    told = [word for item in history if item >= 0 for word in titles[item].split()]
    said = [word for item in recommended if 0 <= item < 3 for word in titles[item].split()]
    counted = Counter(told)
    frequent = sorted(counted, key=lambda word: (-counted[word], word))[:num_frequent]
    expected = math.nan
    if told and said:
        shares = [sum(word in frequent for word in side) / len(side) for side in (said, told)]
        expected = shares[0] - shares[1]
    found = token_bias(place_counts(np.array(recommended)[:, None], k=1), np.array(history), words)[0]
    assert found == pytest.approx(expected, nan_ok=True, abs=1e-12)
