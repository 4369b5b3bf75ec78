"""What a network is asked in a step of training. Dimensions: see ``items.py`` and ``histories.py``.

Each function maps a network and sequences [B, L] to states [X, H], the item ids that come at them [X], and the rows
that they are of [X].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sprec_ray.recommenders.histories import prefixes
from sprec_ray.recommenders.items import PADDING, CausalNetwork, ItemNetwork
from sprec_ray.recommenders.self_attention import Bert4Rec

MASKED_SHARE = 0.2
LAST_ONLY_SHARE = 1 / 11

Targets = Callable[[Any, Tensor], tuple[Tensor, Tensor, Tensor]]


def every_place(network: CausalNetwork, sequences_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every next item, in one pass of a network whose states see nothing later (``network.states``)."""
    ids_BT = sequences_BL[:, :-1]
    asked_BT = ids_BT != PADDING
    return network.states(ids_BT)[asked_BT], sequences_BL[:, 1:][asked_BT], asked_BT.nonzero()[:, 0]


def every_prefix(network: ItemNetwork, sequences_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every next item, each after a prefix of the sequence, for networks that read a whole history into one state."""
    ids_BT = sequences_BL[:, :-1]
    asked_BT = ids_BT != PADDING
    return network(prefixes(ids_BT)), sequences_BL[:, 1:][asked_BT], asked_BT.nonzero()[:, 0]


def masked_places(network: Bert4Rec, sequences_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A fifth of the items, masked, whatever is before and after them (arXiv 1904.06690, section 3.6).

    Of one row in eleven, and where chance masks nothing, the last item alone is masked, as the next item will be asked
    for: the published code adds such a row to ten with random masks.
    """
    items_BL = sequences_BL != PADDING
    hidden_BL = items_BL & (torch.rand(sequences_BL.shape) < MASKED_SHARE)
    last_only_B1 = (torch.rand(len(sequences_BL), 1) < LAST_ONLY_SHARE) | ~hidden_BL.any(dim=1, keepdim=True)
    last_BL = torch.zeros_like(items_BL)
    last_BL[:, -1] = True
    hidden_BL = torch.where(last_only_B1, last_BL, hidden_BL)
    states_BLH = network.states(sequences_BL.masked_fill(hidden_BL, network.mask))
    return states_BLH[hidden_BL], sequences_BL[hidden_BL], hidden_BL.nonzero()[:, 0]


TARGETS: dict[str, Targets] = {
    "sasrec": every_place,
    "gru4rec": every_place,
    "bert4rec": masked_places,
    "caser": every_prefix,
    "stamp": every_prefix,
    "shan": every_prefix,
    "gcsan": every_prefix,
    "core": every_prefix,
}
