"""The second opinion on the catalogue: popularity, or a collaborative model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprec_ray.data.catalog import Catalog
from sprec_ray.evaluation.adjustment import Adjustment, lm_weight
from sprec_ray.evaluation.grounding import ground_adjusted, ground_texts

CATALOG = Catalog(titles=("Dune", "Emma", "1984"), genres={})
COUNTS = {"Dune": 6, "Emma": 0, "1984": 3}
VECTORS = {"Dune": (0.0, 0.0), "Emma": (3.0, 4.0), "1984": (0.0, 2.5), "Dunes": (0.0, 1.0)}


def embed(texts: Sequence[str]) -> np.ndarray:
    return np.array([VECTORS[text] for text in texts], dtype=np.float32)


def adjustment(kind: str) -> Adjustment:
    def log_probs(histories: Sequence[Sequence[str]]) -> np.ndarray:
        return np.log([[0.5, 0.3, 0.2] for _ in histories])

    return Adjustment(kind, CATALOG, popularity=COUNTS.__getitem__, log_probs=log_probs)  # type: ignore[arg-type]


def test_popularity_is_the_share_of_events_with_one_more_for_every_title() -> None:
    logps = adjustment("popularity").logps([("Emma",), ()])
    assert np.exp(logps) == pytest.approx(np.array([[7, 1, 4]] * 2) / 12)


def test_shares_run_from_0_to_1_in_every_row() -> None:
    assert adjustment("popularity").shares([()]).tolist() == [[1.0, 0.0, 0.5]]
    of_scores = np.log(0.3 / 0.2) / np.log(0.5 / 0.2)  # of the model's scores, not of its probabilities
    assert adjustment("collaborative").shares([()])[0] == pytest.approx([1.0, of_scores, 0.0])


def test_equal_titles_have_no_share() -> None:
    same = Adjustment("popularity", CATALOG, popularity=lambda _: 4, log_probs=lambda _: np.zeros((0, 3)))
    assert same.shares([()]).tolist() == [[0.0, 0.0, 0.0]]


@given(st.floats(0, 100))
def test_d3_s_weight_ranks_as_gamma_does(gamma: float) -> None:
    g = lm_weight(gamma)
    assert (1 - g) / g == pytest.approx(gamma, abs=1e-9)


def test_gamma_of_zero_is_plain_grounding() -> None:
    shares = adjustment("popularity").shares([()] * 3)
    texts = ["Dunes", "Emma", "Dunes"]
    plain = ground_texts(texts, CATALOG, embed, k=3)
    assert ground_adjusted(texts, CATALOG, embed, shares, gamma=0.0, k=3).tolist() == plain.tolist()


def test_weights_that_diverged_are_an_error_and_no_ranking() -> None:
    def diverged(texts: Sequence[str]) -> np.ndarray:
        return np.full((len(texts), 2), np.nan, dtype=np.float32)

    shares = adjustment("popularity").shares([()])
    with pytest.raises(ValueError, match="generated embeddings are not finite"):
        ground_adjusted(["Dunes"], CATALOG, diverged, shares, gamma=1.0, k=2)
    with pytest.raises(ValueError, match="k=4 exceeds the catalogue's 3 titles"):
        ground_adjusted(["Dunes"], CATALOG, embed, shares, gamma=1.0, k=4)


def test_a_popular_title_comes_nearer() -> None:
    """From Dunes (0, 1): Dune is at 1, 1984 at 1.5, Emma at sqrt(18) = 4.243; from 0 to 1: 0, .154, 1.

    From Emma: Emma 0, 1984 at sqrt(11.25) = 3.354, Dune at 5: 0, .671, 1. With gamma 2, 1984's .671 / 1.5^2 = .298 and
    Dune's 1 / 2^2 = .25 change places.
    """
    shares = adjustment("popularity").shares([()] * 2)
    ranked = ground_adjusted(["Dunes", "Emma"], CATALOG, embed, shares, gamma=2.0, k=3)
    assert ranked.tolist() == [[0, 2, 1], [1, 0, 2]]
    assert ground_texts(["Emma"], CATALOG, embed, k=3).tolist() == [[1, 2, 0]]
