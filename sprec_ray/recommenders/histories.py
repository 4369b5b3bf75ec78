"""Titles as rows of ids, and what a step of training takes from them. Dimensions: see ``items.py``; ``L`` = T + 1.

A row's sequence is its history and its target. Every next item of it is a target (except in BERT4Rec), so each row
teaches as many items as it has places, whether the network reads them in one pass or prefix by prefix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sprec_ray.recommenders.items import PADDING


def known_ids(titles: Sequence[str], ids: Mapping[str, int]) -> list[int]:
    """The ids of titles, in their order; titles outside the catalogue are left out."""
    return [ids[title] for title in titles if title in ids]


def left_padded(rows: Sequence[Sequence[int]], num_places: int) -> Tensor:
    """Rows of ids as one tensor [B, num_places]: the last places of each, padding before them.

    >>> left_padded([[5], [6, 7, 8], []], 2).tolist()
    [[0, 5], [7, 8], [0, 0]]
    """
    ids_BT = torch.full((len(rows), num_places), PADDING)
    for row, ids in enumerate(rows):
        kept = ids[-num_places:]
        if kept:
            ids_BT[row, -len(kept) :] = torch.tensor(kept)
    return ids_BT


def prefixes(ids_BT: Tensor) -> Tensor:
    """Every beginning of every history, [X, T], in the order of ``ids_BT != 0``.

    >>> prefixes(torch.tensor([[0, 7, 8]])).tolist()
    [[0, 0, 7], [0, 7, 8]]
    """
    num_places = ids_BT.shape[1]
    padded = torch.nn.functional.pad(ids_BT, (num_places - 1, 0), value=PADDING)
    return padded.unfold(1, num_places, 1)[ids_BT != PADDING]


def draw_negatives(sequences_BL: Tensor, count: int, num_items: int, rows_X: Tensor) -> Tensor:
    """``count`` items per target, [X, N], uniform over the items that are not in the sequence of its row ``rows_X``.

    The r-th of the allowed ids is r plus the number of excluded ids at or below it, so nothing is drawn twice over.
    """
    num_places = sequences_BL.shape[1]
    ids_BL = sequences_BL.sort(dim=1).values
    repeated_BL = torch.zeros_like(ids_BL, dtype=torch.bool)
    repeated_BL[:, 1:] = ids_BL[:, 1:] == ids_BL[:, :-1]
    beyond = num_items + 1
    ids_BL = ids_BL.masked_fill(repeated_BL | (ids_BL == PADDING), beyond).sort(dim=1).values
    below_BL = torch.where(ids_BL < beyond, ids_BL - torch.arange(num_places), beyond)
    num_allowed_B = num_items - (ids_BL < beyond).sum(dim=1)
    shares_XN = torch.rand(len(rows_X), count, dtype=torch.float64)
    ranks_XN = (shares_XN * num_allowed_B[rows_X, None]).long() + 1
    return ranks_XN + torch.searchsorted(below_BL[rows_X], ranks_XN, right=True)
