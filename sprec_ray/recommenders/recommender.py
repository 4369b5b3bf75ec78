"""A trained recommender: scores of every title after a history, and its files. Dimensions: see ``items.py``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from sprec_ray.config.methods import CollaborativeConfig
from sprec_ray.recommenders.convolution import Caser
from sprec_ray.recommenders.counts import Chance, LastItem, Popularity
from sprec_ray.recommenders.graph import GcSan
from sprec_ray.recommenders.histories import known_ids, left_padded
from sprec_ray.recommenders.items import PADDING, ItemNetwork
from sprec_ray.recommenders.recurrent import Gru4Rec
from sprec_ray.recommenders.self_attention import Bert4Rec, Core, SasRec
from sprec_ray.recommenders.sessions import Shan, Stamp
from sprec_ray.storage.artifacts import ArtifactError, read_json, write_bytes, write_json

WEIGHTS = "recommender.safetensors"
DESCRIPTION = "recommender.json"

NETWORKS: dict[str, Callable[[CollaborativeConfig, int, int], ItemNetwork]] = {
    "sasrec": SasRec,
    "gru4rec": Gru4Rec,
    "caser": Caser,
    "bert4rec": Bert4Rec,
    "stamp": Stamp,
    "shan": Shan,
    "gcsan": GcSan,
    "core": Core,
}
"""Settings, number of items and longest history to a network: ids [B, T] -> states [B, H], with ``items`` to score."""

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSummary:
    """What training did. A recommender that counts has no epochs and no parameters."""

    model: str
    num_epochs: int
    best_epoch: int
    """The epoch that was kept, from 1."""
    valid_ndcg: float
    """NDCG@10 on the validation rows, NaN without any."""
    baselines: dict[str, float]
    """The same of popularity and of what followed the last title."""
    num_parameters: int
    num_rows: int
    """Training rows with a known history and a known target."""
    seconds: float


class Network(nn.Module):
    """A network that scores items; after a history without a known item, the popularity of training does."""

    log_popularity_I: Tensor

    def __init__(self, network: ItemNetwork, log_popularity_I: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("log_popularity_I", log_popularity_I)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Logits, [B, I]."""
        scores_BI: Tensor = self.network.items.logits(self.network(ids_BT))
        empty_B1 = (ids_BT == PADDING).all(dim=1, keepdim=True)
        return torch.where(empty_B1, self.log_popularity_I, scores_BI)


@dataclass(frozen=True, slots=True)
class Recommender:
    """A model over the titles of a catalogue; ``model`` maps ids [B, T] to scores [B, I]."""

    settings: CollaborativeConfig
    titles: tuple[str, ...]
    max_history: int
    """Titles of a history that the model reads: the last ones."""
    model: nn.Module
    summary: FitSummary
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ids", {title: index for index, title in enumerate(self.titles, start=1)})
        self.model.eval()

    def scores(self, histories: Sequence[Sequence[str]]) -> Scores:
        """A score for every title after each history, [B, I], in the order of ``titles``; higher is better.

        Logits, not normalised; of ``popularity`` and ``last_item`` log-probabilities. Titles outside the catalogue are
        left out of histories, and after a history without any known title the scores are the popularity of training.
        """
        ids_BT = left_padded([known_ids(history, self._ids) for history in histories], self.max_history)
        return score_ids(self.model, ids_BT, self.settings.batch_size, len(self.titles))

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and description (JSON), each whole or not at all, the description last."""
        write_bytes(folder / WEIGHTS, save({name: t.contiguous() for name, t in self.model.state_dict().items()}))
        values = {
            "settings": dataclasses.asdict(self.settings),
            "max_history": self.max_history,
            "summary": dataclasses.asdict(self.summary),
            "titles": self.titles,
        }
        write_json(folder / DESCRIPTION, values)


def read_recommender(folder: Path) -> Recommender:
    """The recommender that ``save`` wrote. Raises ArtifactError naming the file that is missing or damaged."""
    values = read_json(folder / DESCRIPTION)
    try:
        settings = CollaborativeConfig(**values["settings"])
        titles, max_history = tuple(values["titles"]), values["max_history"]
        summary = _summary(values["summary"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{folder / DESCRIPTION} is no recommender ({error}); delete {folder}") from None
    try:
        tensors = load((folder / WEIGHTS).read_bytes())
        model = empty_model(settings, len(titles), max_history, num_pairs=len(tensors.get("followers", ())))
        model.load_state_dict(tensors)
    except FileNotFoundError:
        raise ArtifactError(f"{folder / WEIGHTS} does not exist; delete {folder} and run again") from None
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(f"{folder / WEIGHTS} is damaged ({reason}); delete {folder} and run again") from None
    return Recommender(settings, titles, max_history, model, summary)


def _summary(values: Mapping[str, Any]) -> FitSummary:
    """The summary that was written; a number that was not defined is null in a file."""
    ndcgs = {name: math.nan if ndcg is None else ndcg for name, ndcg in values["baselines"].items()}
    valid_ndcg = math.nan if values["valid_ndcg"] is None else values["valid_ndcg"]
    return FitSummary(**{**values, "baselines": ndcgs, "valid_ndcg": valid_ndcg})


def empty_model(settings: CollaborativeConfig, num_items: int, max_history: int, *, num_pairs: int = 0) -> nn.Module:
    """A model of the right shape without anything learned: ids [B, T] -> scores [B, I]."""
    popularity_I = torch.zeros(num_items)
    match settings.model:
        case "popularity":
            return Popularity(popularity_I)
        case "last_item":
            pairs = torch.zeros(num_pairs, dtype=torch.int64)
            return LastItem(popularity_I, torch.zeros(num_items + 2, dtype=torch.int64), pairs, pairs.clone())
        case "random":
            return Chance(num_items, 0)
        case name:
            return Network(NETWORKS[name](settings, num_items, max_history), popularity_I)


def score_ids(model: nn.Module, ids_BT: Tensor, batch_size: int, num_items: int) -> Scores:
    """The model's scores of all histories, [B, I], computed ``batch_size`` rows at a time."""
    scores_BI = np.empty((len(ids_BT), num_items), dtype=np.float32)
    with torch.no_grad():
        for start in range(0, len(ids_BT), batch_size):
            batch = slice(start, start + batch_size)
            scores_BI[batch] = model(ids_BT[batch]).numpy()
    return scores_BI


def log_softmax(scores_BI: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Log P(item | history) in nats, [B, I], in float64: a softmax of each row of scores."""
    scores_BI = scores_BI.astype(np.float64)
    shifted_BI = scores_BI - scores_BI.max(axis=1, keepdims=True)
    return np.asarray(shifted_BI - np.log(np.exp(shifted_BI).sum(axis=1, keepdims=True)))
