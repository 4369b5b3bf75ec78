"""What a network is asked in a step of training. Dimensions: see ``items.py`` and ``batches.py``.

Each function maps a network and sequences [B, L] to states [X, H], the item ids that come at them [X], and the rows
that they are of [X].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sprec_ray.baselines.batches import prefixes
from sprec_ray.baselines.items import PADDING, CausalNetwork, ItemNetwork

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


TARGETS: dict[str, Targets] = {
    "sasrec": every_place,
}
