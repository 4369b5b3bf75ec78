"""Training a recommender on the language model's examples. Dimensions: see ``items.py`` and ``histories.py``."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprec_ray.config.methods import CollaborativeConfig
from sprec_ray.data.sequences import derive_rng
from sprec_ray.recommenders.counts import Chance, LastItem, Popularity, log_popularity
from sprec_ray.recommenders.histories import draw_negatives, known_ids, left_padded
from sprec_ray.recommenders.items import ItemNetwork
from sprec_ray.recommenders.recommender import FitSummary, Network, Recommender, Scores, empty_model, score_ids
from sprec_ray.recommenders.targets import TARGETS
from sprec_ray.types import Example

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, float], None]
"""Called after each epoch: epochs run, epochs at most, NDCG@10 on the validation rows."""

NDCG_PLACES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Examples as ids. Rows of ``valid`` with an unknown target stay, as misses: their id is 0."""

    num_items: int
    train: list[list[int]]
    """History and target of each row."""
    max_history: int
    valid_BT: Tensor
    valid_targets_B: Tensor


def fit_recommender(
    settings: CollaborativeConfig,
    train: Sequence[Example],
    valid: Sequence[Example],
    titles: Sequence[str],
    *,
    seed: int,
    progress: Progress | None = None,
) -> Recommender:
    """A recommender over ``titles``, trained on ``train``; the same for the same arguments and number of threads.

    A network is trained with Adam until NDCG@10 on ``valid`` has not risen for ``settings.patience`` epochs, and is
    given the weights of its best epoch; without ``valid`` it is trained for all epochs. It reads as many titles of a
    history as the longest of ``train`` has. Training rows without a known title in the history, or with an unknown
    target, are left out. PyTorch's global generator is as it was afterwards.

    Raises ValueError when no training row is left, or when one holds the whole catalogue, so that it has no negative.
    """
    started = time.monotonic()
    rows = _rows_of(train, valid, titles)
    popularity_I = log_popularity([ids[-1] for ids in rows.train], rows.num_items)
    baselines = {"popularity": Popularity(popularity_I), "last_item": LastItem.of(rows.train, popularity_I)}
    model: nn.Module
    history: list[float] = []
    if settings.model in baselines:
        model = baselines[settings.model]
    elif settings.model == "random":
        model = Chance(rows.num_items, seed)
    else:
        if not valid:
            logger.warning("there are no validation rows: the recommender is trained for all epochs, its NDCG is NaN")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(derive_rng(seed, f"collaborative/{settings.model}").integers(2**63)))
            model, history = _train(settings, rows, popularity_I, progress)
    valid_ndcg = _valid_ndcg(model, rows, settings.batch_size)
    summary = FitSummary(
        model=settings.model,
        num_epochs=len(history),
        best_epoch=_best_epoch(history),
        valid_ndcg=valid_ndcg,
        baselines={name: _valid_ndcg(counts, rows, settings.batch_size) for name, counts in baselines.items()},
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_rows=len(rows.train),
        seconds=time.monotonic() - started,
    )
    _warn_if_beaten(summary)
    return Recommender(settings, tuple(titles), rows.max_history, model, summary)


def last_item_scores(train: Sequence[Example], titles: Sequence[str], histories: Sequence[Sequence[str]]) -> Scores:
    """What followed each history's last title in ``train``: scores of all titles, [B, I]. Nothing is learned."""
    return fit_recommender(CollaborativeConfig(model="last_item"), train, (), titles, seed=0).scores(histories)


def _rows_of(train: Sequence[Example], valid: Sequence[Example], titles: Sequence[str]) -> _Rows:
    ids = {title: index for index, title in enumerate(titles, start=1)}
    known = [
        [*history, ids[row.target]] for row in train if row.target in ids and (history := known_ids(row.history, ids))
    ]
    if not known:
        raise ValueError(
            f"none of {len(train)} training rows has a history and a target in the catalogue of {len(ids)} titles, so "
            "no recommender can be trained; the rows and the catalogue must be of the same run"
        )
    if len(known) < len(train):
        logger.warning("%d of %d training rows have no known title: left out", len(train) - len(known), len(train))
    max_history = max(len(row) for row in known) - 1
    return _Rows(
        num_items=len(ids),
        train=known,
        max_history=max_history,
        valid_BT=left_padded([known_ids(row.history, ids) for row in valid], max_history),
        valid_targets_B=torch.tensor([ids.get(row.target, 0) for row in valid], dtype=torch.int64),
    )


def _train(
    settings: CollaborativeConfig, rows: _Rows, popularity_I: Tensor, progress: Progress | None
) -> tuple[nn.Module, list[float]]:
    """The model of the best epoch, and NDCG@10 on the validation rows after every epoch."""
    if settings.loss == "bce" and max(len(set(row)) for row in rows.train) >= rows.num_items:
        raise ValueError(
            f"a training row holds all {rows.num_items} titles of the catalogue, so there is no negative to draw; set "
            "collaborative.loss=softmax"
        )
    model = empty_model(settings, rows.num_items, rows.max_history)
    assert isinstance(model, Network)
    model.log_popularity_I.copy_(popularity_I)
    sequences_BL = left_padded(rows.train, rows.max_history + 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    history: list[float] = []
    best = copy.deepcopy(model.state_dict())
    while len(history) < settings.num_epochs and len(history) - _best_epoch(history) < settings.patience:
        model.train()
        for batch in torch.split(torch.randperm(len(sequences_BL)), settings.batch_size):
            optimizer.zero_grad()
            _loss(settings, model.network, sequences_BL[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        model.eval()
        if not _is_finite(model, sequences_BL[: settings.batch_size, :-1]):
            if not history:
                raise ValueError(
                    f"{settings.model} diverged in its first epoch; lower collaborative.learning_rate="
                    f"{settings.learning_rate:g}"
                )
            logger.warning(
                "%s diverged in epoch %d: epoch %d is kept; lower collaborative.learning_rate=%g",
                settings.model,
                len(history) + 1,
                _best_epoch(history),
                settings.learning_rate,
            )
            break
        history.append(_valid_ndcg(model, rows, settings.batch_size))
        if _best_epoch(history) == len(history):
            best = copy.deepcopy(model.state_dict())
        if progress is not None:
            progress(len(history), settings.num_epochs, history[-1])
    model.load_state_dict(best)
    return model, history


def _is_finite(model: nn.Module, ids_BT: Tensor) -> bool:
    """Whether weights, and scores of some histories, are numbers."""
    with torch.no_grad():
        return bool(model(ids_BT).isfinite().all()) and all(bool(p.isfinite().all()) for p in model.parameters())


def _best_epoch(history: Sequence[float]) -> int:
    """The first epoch with the highest NDCG, from 1; the last where it is not defined; 0 of none."""
    if not history or math.isnan(history[-1]):
        return len(history)
    return int(np.argmax(history)) + 1


def _loss(settings: CollaborativeConfig, network: ItemNetwork, sequences_BL: Tensor) -> Tensor:
    """The mean over all targets of the batch, in nats.

    ``softmax``: -log P(target) among all items. ``bce``: -log sigmoid(target) - mean_j log sigmoid(-negative_j)
    (arXiv 1808.09781 eq. 7, which has one negative). A sum over many would first push all scores down alike.
    """
    states_XH, targets_X, rows_X = TARGETS[settings.model](network, sequences_BL)
    items = network.items
    if settings.loss == "softmax":
        return F.cross_entropy(items.logits(states_XH), targets_X - 1)
    negatives_XN = draw_negatives(sequences_BL, settings.num_negatives, items.num_items, rows_X)
    logits_XN = items.logits_of(states_XH, torch.cat([targets_X[:, None], negatives_XN], dim=1))
    of_targets_X = F.logsigmoid(logits_XN[:, 0])
    of_negatives_X = F.logsigmoid(-logits_XN[:, 1:]).mean(dim=1)
    return -(of_targets_X + of_negatives_X).mean()


def _valid_ndcg(model: nn.Module, rows: _Rows, batch_size: int) -> float:
    """NDCG@10 over all titles on the validation rows; a target outside the catalogue is a miss; NaN without rows."""
    if not len(rows.valid_BT):
        return math.nan
    ranks_B = target_ranks(score_ids(model, rows.valid_BT, batch_size, rows.num_items), rows.valid_targets_B.numpy())
    return float(np.where(ranks_B < NDCG_PLACES, 1 / np.log2(ranks_B + 2.0), 0.0).mean())


def target_ranks(scores_BI: npt.NDArray[np.float32], targets_B: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many items rank before each target, [B]; of equal scores the earlier item does. Of target id 0: I.

    A score that is not a number ranks before every target, so that it never helps a model.
    """
    known_B = targets_B > 0
    places_B = np.where(known_B, targets_B - 1, 0)
    target_B1 = np.take_along_axis(scores_BI, places_B[:, None], axis=1)
    earlier_BI = np.arange(scores_BI.shape[1]) < places_B[:, None]
    ranks_B = (~(scores_BI <= target_B1) | ((scores_BI == target_B1) & earlier_BI)).sum(axis=1)
    return np.where(known_B, ranks_B, scores_BI.shape[1])


def _warn_if_beaten(summary: FitSummary) -> None:
    for name, ndcg in summary.baselines.items():
        if summary.num_epochs and summary.valid_ndcg <= ndcg:
            logger.warning(
                "%s does not beat %s on the validation rows: NDCG@%d %.4f against %.4f; more training rows, another "
                "collaborative.learning_rate or collaborative.loss=softmax may help",
                summary.model,
                name,
                NDCG_PLACES,
                summary.valid_ndcg,
                ndcg,
            )
