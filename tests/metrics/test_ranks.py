"""Exact rankings from scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprec_ray.metrics import ranks as scores
from sprec_ray.metrics.ranks import rank_scores


def test_ranking_by_hand():
    """Row 0: 0.9 at 3, then the tie of 0.5 at 0 and 2 in the order of their indices. Row 1: -inf ranks last."""
    given_ = np.array([[0.5, 0.1, 0.5, 0.9], [-np.inf, -1.0, 2.0, -np.inf]])
    assert rank_scores(given_, 3).tolist() == [[3, 0, 2], [2, 1, 0]]


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 6).flatmap(
        lambda num_items: st.tuples(
            st.lists(st.lists(st.integers(-2, 2), min_size=num_items, max_size=num_items), min_size=1, max_size=5),
            st.integers(1, num_items),
        )
    ),
    st.sampled_from([np.float32, np.float64]),
    st.integers(1, 20),
)
def test_ranking_equals_a_stable_sort_for_any_block(case, dtype, block):
    rows, k = case
    expected = [sorted(range(len(row)), key=lambda item, row=row: -row[item])[:k] for row in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "_BLOCK", block)
        assert rank_scores(np.array(rows, dtype=dtype), k).tolist() == expected


def test_what_cannot_be_ranked_is_named():
    with pytest.raises(ValueError, match="row 1 has a score that is not a number"):
        rank_scores(np.array([[1.0, 2.0], [np.nan, 2.0]]), 1)
    with pytest.raises(ValueError, match="k=3 must be from 1 to the number of items, 2"):
        rank_scores(np.zeros((1, 2)), 3)
    assert rank_scores(np.zeros((0, 4)), 2).shape == (0, 2)
