"""Rows of ids, prefixes and negatives."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

from sprec_ray.recommenders import graph, histories
from sprec_ray.recommenders import self_attention as attention
from sprec_ray.recommenders.histories import draw_negatives, known_ids, left_padded


@pytest.mark.parametrize("module", [histories, graph, attention])
def test_the_examples_of_the_docstrings_hold(module: object) -> None:
    results = doctest.testmod(module, extraglobs={"torch": torch})  # type: ignore[arg-type]
    assert results.attempted
    assert not results.failed


def test_unknown_titles_are_left_out_and_the_last_places_kept() -> None:
    ids = {"A": 1, "B": 2, "C": 3}
    rows = [known_ids(titles, ids) for titles in (("A", "x", "B", "C"), (), ("x",), ("C", "C"))]
    assert rows == [[1, 2, 3], [], [], [3, 3]]
    assert left_padded(rows, 2).tolist() == [[2, 3], [0, 0], [0, 0], [3, 3]]
    assert left_padded([], 2).shape == (0, 2)


def test_negatives_are_uniform_over_what_the_row_does_not_hold() -> None:
    """Rows that hold {2, 3}, {1, 6} and all but 4, of six items: each other item has its share within 5 deviations."""
    sequences_BL = torch.tensor([[0, 0, 3, 2, 3], [0, 1, 6, 6, 1], [6, 5, 3, 2, 1]])
    torch.manual_seed(0)
    rows_X = torch.tensor([2, 0, 1, 0])
    drawn_XN = draw_negatives(sequences_BL, 6000, 6, rows_X)
    assert drawn_XN.shape == (4, 6000)
    for row, drawn_N in zip(rows_X.tolist(), drawn_XN, strict=True):
        allowed = sorted(set(range(1, 7)) - set(sequences_BL[row].tolist()))
        values, counts = np.unique(drawn_N.numpy(), return_counts=True)
        assert values.tolist() == allowed
        share = 1 / len(allowed)
        assert np.abs(counts / 6000 - share).max() <= 5 * np.sqrt(share * (1 - share) / 6000)
