"""A second opinion on the catalogue beside the language model's: how popular a title is, or a collaborative model.

Dimensions: ``B`` rows, ``I`` catalogue titles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from sprec_ray.data.catalog import Catalog

Floats = npt.NDArray[np.float64]

GAMMAS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""What ``evaluation.gamma=valid`` chooses from; in the terms of D3, g from 1 to 1/17."""


class Adjustment:
    """The opinion of a whole run; ``log_probs`` is that of a collaborative model on histories."""

    def __init__(
        self,
        kind: Literal["popularity", "collaborative"],
        catalog: Catalog,
        *,
        popularity: Callable[[str], int],
        log_probs: Callable[[Sequence[Sequence[str]]], Floats],
    ) -> None:
        self._kind, self._catalog, self._popularity, self._log_probs = kind, catalog, popularity, log_probs

    def logps(self, histories: Sequence[Sequence[str]]) -> Floats:
        """Log p of every title for every row, [B, I], in nats: what D3 adds to the language model's, token by token.

        Of popularity with one event more for every title, so that those never met in training are not impossible.
        """
        if self._kind == "collaborative":
            return self._log_probs(histories)
        counts_I = self._counts() + 1.0
        return np.broadcast_to(np.log(counts_I / counts_I.sum()), (len(histories), len(counts_I)))

    def shares(self, histories: Sequence[Sequence[str]]) -> Floats:
        """Popularity or a model's scores from 0 for a row's last title to 1 for its first, [B, I]: what BIGRec uses.

        Log-probabilities are the model's scores less a number of the row, which makes no difference here.
        """
        if self._kind == "collaborative":
            values_BI = self._log_probs(histories)
        else:
            values_BI = np.broadcast_to(self._counts(), (len(histories), len(self._catalog)))
        lowest_B1 = values_BI.min(axis=1, keepdims=True)
        spread_B1 = values_BI.max(axis=1, keepdims=True) - lowest_B1
        shares_BI: Floats = (values_BI - lowest_B1) / np.where(spread_B1 > 0, spread_B1, 1.0)
        return shares_BI

    def _counts(self) -> Floats:
        return np.array([self._popularity(title) for title in self._catalog.titles], dtype=np.float64)


def lm_weight(gamma: float) -> float:
    """G of D3: a ranking by ``g log p_LM + (1 - g) log p_CF`` is one by ``log p_LM + gamma log p_CF``.

    >>> lm_weight(0.25)
    0.8
    """
    return 1 / (1 + gamma)
