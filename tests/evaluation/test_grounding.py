"""Grounding: the nearest titles, ties, cancellation, repeated texts."""

import re

import numpy as np
import pytest

from sprec_ray.data.catalog import Catalog
from sprec_ray.evaluation.grounding import ground_texts, nearest, sentence_embedder, text_to_ground, unique_texts


def catalog_of(*titles):
    return Catalog(titles=titles, genres={})


def brute_force(queries, catalog, k):
    distances = ((queries[:, None].astype(np.float64) - catalog[None].astype(np.float64)) ** 2).sum(-1)
    return np.argsort(distances, axis=1, kind="stable")[:, :k]


def test_nearest_by_hand():
    """Titles at 0, 3 and 10 on a line; 4 is 1 from the second, 4 from the first, 6 from the third."""
    catalog = np.array([[0.0], [3.0], [10.0]], dtype=np.float32)
    assert nearest(np.array([[4.0]], dtype=np.float32), catalog, k=3).tolist() == [[1, 0, 2]]


def test_ties_go_to_the_smaller_index():
    catalog = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1], [1, 0]], dtype=np.float32)
    assert nearest(np.zeros((1, 2), dtype=np.float32), catalog, k=5).tolist() == [[0, 1, 2, 3, 4]]
    assert nearest(catalog[4:], catalog, k=2).tolist() == [[0, 4]]


def test_a_large_common_vector_does_not_hide_small_differences():
    """In float32 |q|^2 + |c|^2 - 2qc near 1e10 has a spacing of 1024, against squared distances of about 1e-4."""
    rng = np.random.default_rng(0)
    catalog = (5e3 + np.cumsum(rng.choice([4, 8], size=(300, 64)), axis=0) / 1024).astype(np.float32)
    queries = catalog[rng.permutation(300)[:50]]
    np.testing.assert_array_equal(nearest(queries, catalog, k=4), brute_force(queries, catalog, 4))


def test_large_shapes_give_what_brute_force_gives_on_a_sample():
    rng = np.random.default_rng(1)
    catalog = rng.standard_normal((32_000, 64), dtype=np.float32)
    queries = rng.standard_normal((1000, 64), dtype=np.float32)
    found = nearest(queries, catalog, k=5)
    assert found.shape == (1000, 5)
    for row in rng.integers(0, 1000, 5):
        np.testing.assert_array_equal(found[row : row + 1], brute_force(queries[row : row + 1], catalog, 5))


def test_what_cannot_be_ranked_is_an_error():
    catalog = np.zeros((2, 3), dtype=np.float32)
    with pytest.raises(ValueError, match="k=3 exceeds the catalogue's 2 titles"):
        nearest(catalog, catalog, k=3)
    with pytest.raises(ValueError, match="generated embeddings are not finite"):
        nearest(catalog * np.nan, catalog, k=1)


def test_a_catalogue_title_grounds_to_itself_and_each_text_is_embedded_once():
    asked = []

    def embed(texts):
        asked.extend(texts)
        return np.array([[len(text)] for text in texts], dtype=np.float32)

    catalog = catalog_of("aaa", "bb", "cccc")
    ranked = ground_texts(["cccc", "x", "cccc", "x", "bb"], catalog, embed, k=2)
    assert asked == ["aaa", "bb", "cccc", "x"]
    assert ranked.tolist() == [[2, 0], [1, 0], [2, 0], [1, 0], [1, 0]]


def test_no_text_gives_no_rows():
    ranked = ground_texts([], catalog_of("a"), lambda texts: np.ones((len(texts), 2), dtype=np.float32), k=1)
    assert ranked.shape == (0, 1)


def test_unique_texts_restore_the_input():
    distinct, inverse = unique_texts(["b", "a", "b", ""])
    assert distinct == ["b", "a", ""]
    assert [distinct[index] for index in inverse] == ["b", "a", "b", ""]


@pytest.mark.parametrize(
    ("generated", "text"),
    [
        ('"Dune"\n', "Dune"),
        ('"A Child Called "It""\nmore', 'A Child Called "It"'),
        ('"Dune', "Dune"),
        ("Dune\nEmma", "Dune"),
        ('  Dune"  ', "Dune"),
        ("", ""),
        ("\nDune", ""),
    ],
)
def test_text_to_ground(generated, text):
    assert text_to_ground(generated) == text


def test_missing_sentence_transformers_names_the_remedy(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=re.escape("pip install 'sprec-ray[sentence]'")):
        sentence_embedder("any")
