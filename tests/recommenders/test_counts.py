"""Recommenders that count, by hand."""

from __future__ import annotations

import numpy as np
import torch

from sprec_ray.recommenders.counts import CHANCE, Chance, LastItem, Popularity, log_popularity


def test_popularity_is_the_smoothed_share_of_targets() -> None:
    """Targets 1 1 3 of four items: (2 + 1, 0 + 1, 1 + 1, 0 + 1) / (3 + 4)."""
    popularity_I = log_popularity([1, 1, 3], 4)
    np.testing.assert_allclose(popularity_I.exp(), np.array([3, 1, 2, 1]) / 7, rtol=1e-6)
    torch.testing.assert_close(Popularity(popularity_I)(torch.tensor([[0, 2], [1, 1]])), popularity_I.expand(2, -1))


def test_last_item_counts_what_followed_and_backs_off_to_popularity() -> None:
    """1 is followed by 2 twice and by 3 once, 2 by 1 once, 3 and 4 by nothing; P = (3, 1, 2, 1) / 7.

    After 1: (P1, 2 + P2, 1 + P3, P4) / 4.
    """
    model = LastItem.of([[1, 2], [1, 2, 1, 3]], log_popularity([1, 1, 3], 4))
    shares_BI = model(torch.tensor([[4, 1], [0, 2], [1, 3], [0, 0]])).exp()
    popularity = np.array([3, 1, 2, 1]) / 7
    np.testing.assert_allclose(shares_BI[0], (np.array([0, 2, 1, 0]) + popularity) / 4, rtol=1e-6)
    np.testing.assert_allclose(shares_BI[1], (np.array([1, 0, 0, 0]) + popularity) / 2, rtol=1e-6)
    np.testing.assert_allclose(shares_BI[2:], [popularity] * 2, rtol=1e-6)


def test_chance_ranks_at_random_but_is_a_uniform_probability() -> None:
    """The best item of 2000 histories is each of ten in a tenth of them, within 5 deviations."""
    ids_BT = torch.arange(1, 2001)[:, None]
    scores_BI = Chance(10, 3)(ids_BT)
    shares = np.bincount(scores_BI.argmax(dim=1), minlength=10) / 2000
    assert np.abs(shares - 0.1).max() < 5 * np.sqrt(0.09 / 2000)
    assert (scores_BI.softmax(dim=1) - 0.1).abs().max() < 0.1 * CHANCE
    assert (Chance(10, 4)(ids_BT) != scores_BI).any()
