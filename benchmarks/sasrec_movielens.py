"""Recommenders on MovieLens-100K, leave-one-out: ``python benchmarks/sasrec_movielens.py --data FOLDER [--only TABLE]``.

``FOLDER`` is MovieLens-100K as GroupLens ships it. Of every user the last interaction is the test row, the one before
it the validation row and the rest training; interactions are in order of (time, line of the file). All titles that
the user has not met before are ranked. Tables: ``peer`` compares our SASRec with RecTools' (if it is installed, in
this environment or in that of ``--peer-python``), ``models`` compares all our models.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from sprec_ray.baselines.fit import fit_recommender, target_ranks
from sprec_ray.baselines.recommender import Recommender
from sprec_ray.config_methods import CollaborativeConfig
from sprec_ray.config_sections import DataConfig
from sprec_ray.data.sources.movielens import read_movielens
from sprec_ray.types import Example


def user_titles(folder: Path) -> dict[str, list[str]]:
    """The titles of every user, oldest first; ties of the time go by line."""
    source = read_movielens(DataConfig(source="movielens", path=str(folder)))
    title = {item.item_id: item.title for item in source.items}
    users: dict[str, list[str]] = {}
    for event in sorted(source.interactions, key=lambda event: (event.user_id, event.timestamp, event.order)):
        users.setdefault(event.user_id, []).append(title[event.item_id])
    return users


def ranks(recommender: Recommender, rows: Sequence[Example], met: Sequence[Sequence[str]]) -> npt.NDArray[np.int64]:
    """Titles before each target, [B], those that were met before left out."""
    index = {title: place for place, title in enumerate(recommender.titles)}
    scores_BI = recommender.scores([row.history for row in rows])
    for row, titles in enumerate(met):
        scores_BI[row, [index[title] for title in titles if title != rows[row].target]] = -np.inf
    return target_ranks(scores_BI, np.array([1 + index[row.target] for row in rows]))


def hr_ndcg(ranks_B: npt.NDArray[np.int64], k: int = 10) -> tuple[float, float]:
    """HR@k and NDCG@k."""
    return float((ranks_B < k).mean()), float(np.where(ranks_B < k, 1 / np.log2(ranks_B + 2.0), 0).mean())
