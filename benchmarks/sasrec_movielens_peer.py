"""RecTools' SASRec for sasrec_movielens.py, in an environment that has it: ``pip install 'rectools[torch]'``.

Reads a JSON task from standard input: ``train`` and ``history`` (item ids per user, oldest first) and the settings.
Writes the ten best items per user, those of the history left out, as JSON after each of ``epochs``.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from typing import Any

import pandas as pd
import pytorch_lightning
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


def main() -> None:
    """Answer one task."""
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    task = json.load(sys.stdin)
    torch.set_num_threads(task["num_threads"])
    pytorch_lightning.seed_everything(task["seed"], verbose=False)
    train, history = dataset(task["train"]), dataset(task["history"])
    model = SASRecModel(
        n_blocks=task["num_layers"],
        n_heads=task["num_heads"],
        n_factors=task["hidden_size"],
        dropout_rate=task["dropout"],
        session_max_len=task["max_history"],
        batch_size=task["batch_size"],
        lr=task["learning_rate"],
        loss={"bce": "BCE", "softmax": "softmax"}[task["loss"]],
        n_negatives=task["num_negatives"],
    )
    done, seconds = 0, 0.0
    for epochs in task["epochs"]:
        started = time.monotonic()
        model.fit_partial(train, min_epochs=epochs - done, max_epochs=epochs - done)
        seconds, done = seconds + time.monotonic() - started, epochs
        best = model.recommend(users=list(range(len(task["history"]))), dataset=history, k=10, filter_viewed=True)
        ranked: dict[int, list[int]] = {}
        for row in best.sort_values([Columns.User, Columns.Rank]).itertuples():
            ranked.setdefault(int(row.user_id), []).append(int(row.item_id))
        print("RESULT " + json.dumps({"epochs": epochs, "seconds": seconds, "ranked": ranked}), flush=True)


def dataset(users: list[list[int]]) -> Any:
    """Sequences as RecTools wants them: the place of an item is its time, in days."""
    rows = [
        (user, item, 1, pd.Timestamp("2000-01-01") + pd.Timedelta(days=place))
        for user, items in enumerate(users)
        for place, item in enumerate(items)
    ]
    return Dataset.construct(pd.DataFrame(rows, columns=Columns.Interactions))


if __name__ == "__main__":
    main()
