"""What networks are asked."""

from __future__ import annotations

from typing import Any

import torch

from sprec_ray.recommenders.items import Items
from sprec_ray.recommenders.targets import every_place, every_prefix, masked_places

SEQUENCES = torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4], [0, 0, 0, 7]])


class Echo:
    """States are the ids that were read, so that what was asked can be seen."""

    items: Items
    mask = 9

    def states(self, ids_BT: torch.Tensor) -> torch.Tensor:
        return ids_BT[:, :, None]

    def __call__(self, ids_BT: torch.Tensor) -> Any:
        return ids_BT


def test_every_next_item_is_asked_once_after_what_is_before_it() -> None:
    states, targets, rows = every_place(Echo(), SEQUENCES)
    assert (states[:, 0].tolist(), targets.tolist(), rows.tolist()) == ([5, 1, 2, 3], [6, 2, 3, 4], [0, 1, 1, 1])
    prefixes, targets, rows = every_prefix(Echo(), SEQUENCES)
    assert prefixes.tolist() == [[0, 0, 5], [0, 0, 1], [0, 1, 2], [1, 2, 3]]
    assert (targets.tolist(), rows.tolist()) == ([6, 2, 3, 4], [0, 1, 1, 1])


def test_masked_items_are_the_targets_and_every_row_has_one() -> None:
    torch.manual_seed(0)
    sequences_BL = torch.arange(1, 9).repeat(4000, 1)
    sequences_BL[:2000, :6] = 0
    states, targets, rows = masked_places(Echo(), sequences_BL)  # type: ignore[arg-type]
    assert (states == Echo.mask).all()
    assert (targets > 0).all()
    assert rows.unique().tolist() == list(range(4000))
    long = rows >= 2000
    # Of the long rows: 10 / 11 are masked at random, 8 items with 0.2 each, and 0.8^8 of them with the last; the rest
    # with the last.
    expected = 10 / 11 * (8 * 0.2 + 0.8**8) + 1 / 11
    assert abs(long.sum().item() / 2000 - expected) < 0.15
