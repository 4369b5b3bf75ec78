"""Recommenders on MovieLens-100K, leave-one-out: ``python benchmarks/sasrec_movielens.py --data FOLDER``.

``FOLDER`` is MovieLens-100K as GroupLens ships it. Of every user the last interaction is the test row, the one before
it the validation row, and the rest training; interactions are in order of (time, line of the file). Every title that
the user has not met is ranked. Tables: ``peer`` compares SASRec with RecTools', in the interpreter ``--peer-python``
that has it; ``models`` compares all our models.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import numpy.typing as npt
import torch

from sprec_ray.config.data import DataConfig
from sprec_ray.config.methods import CollaborativeConfig
from sprec_ray.data.sources.movielens import read_movielens
from sprec_ray.recommenders.fit import fit_recommender, target_ranks
from sprec_ray.recommenders.recommender import Recommender
from sprec_ray.types import Example

PEER = Path(__file__).with_name("sasrec_movielens_peer.py")
PEER_EPOCHS = (20, 60)
PLACES = 10
COUNTING = ("popularity", "last_item", "random")

Ints = npt.NDArray[np.int64]
Users = list[list[str]]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", choices=["peer", "models"])
    parser.add_argument("--models", help="of the table of models: some of them, with commas")
    parser.add_argument("--losses", default="bce,softmax", help="of the table of models")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    users = user_titles(options.data)
    if options.only in (None, "peer"):
        print_peer_table(users, options)
    if options.only in (None, "models"):
        names = options.models.split(",") if options.models else get_args(get_type_hints(CollaborativeConfig)["model"])
        print_models_table(users, names, options.losses.split(","), options.seeds)


def user_titles(folder: Path) -> Users:
    """The titles of every user, oldest first; ties of the time go by line."""
    source = read_movielens(DataConfig(source="movielens", path=str(folder)))
    title = {item.item_id: item.title for item in source.items}
    users: dict[str, list[str]] = {}
    for event in sorted(source.interactions or (), key=lambda event: (event.user_id, event.timestamp, event.order)):
        users.setdefault(event.user_id, []).append(title[event.item_id])
    return list(users.values())


def last_row(titles: Sequence[str], max_history: int) -> Example:
    """The last title, and those before it."""
    return Example(example_id="", history=tuple(titles[:-1][-max_history:]), target=titles[-1])


def print_peer_table(users: Users, options: argparse.Namespace) -> None:
    """SASRec of both, one row per user, after fixed numbers of epochs; the catalogue is what training holds."""
    print("| loss | epochs | who | HR@10 | NDCG@10 | seconds |\n" + "|---" * 6 + "|", flush=True)
    for loss in ("bce", "softmax"):
        settings = CollaborativeConfig(loss=loss, batch_size=128)
        found: dict[tuple[int, str], list[tuple[float, float, float]]] = {}
        for seed in range(options.seeds):
            for who, results in (
                ("ours", ours(users, settings, seed)),
                ("RecTools", peer(users, settings, seed, options)),
            ):
                for epochs, ranks_B, seconds in results:
                    found.setdefault((epochs, who), []).append((*hr_ndcg(ranks_B), seconds))
        for (epochs, who), values in sorted(found.items()):
            print(f"| {loss} | {epochs} | {who} | " + " | ".join(spread(values)) + " |", flush=True)


PEER_HISTORY = 50


def ours(users: Users, settings: CollaborativeConfig, seed: int) -> Iterator[tuple[int, Ints, float]]:
    """Epochs, ranks of the test targets, seconds of training."""
    train = [last_row(titles[:-2], PEER_HISTORY) for titles in users]
    catalog = sorted({title for titles in users for title in titles[:-2]})
    for epochs in PEER_EPOCHS:
        at_most = dataclasses.replace(settings, num_epochs=epochs)
        recommender = fit_recommender(at_most, train, [], catalog, seed=seed)
        yield epochs, unmet_ranks(recommender, users, PEER_HISTORY), recommender.summary.seconds


def peer(
    users: Users, settings: CollaborativeConfig, seed: int, options: argparse.Namespace
) -> Iterator[tuple[int, Ints, float]]:
    """The same of RecTools."""
    ids = {title: index for index, title in enumerate(sorted({title for titles in users for title in titles}))}
    sequences = [[ids[title] for title in titles] for titles in users]
    task = {
        **dataclasses.asdict(settings),
        "train": [sequence[:-2] for sequence in sequences],
        "history": [sequence[:-1] for sequence in sequences],
        "max_history": PEER_HISTORY,
        "epochs": PEER_EPOCHS,
        "seed": seed,
        "num_threads": options.threads,
    }
    done = subprocess.run(
        [options.peer_python, str(PEER)], input=json.dumps(task), capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"RecTools did not run in {options.peer_python}: {done.stderr.strip().splitlines()[-1]}")
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            result = json.loads(line.removeprefix("RESULT "))
            ranked = [result["ranked"].get(str(user), []) for user in range(len(users))]
            targets = [sequence[-1] for sequence in sequences]
            places = [
                row.index(target) if target in row else PLACES for row, target in zip(ranked, targets, strict=True)
            ]
            yield result["epochs"], np.array(places), result["seconds"]


def print_models_table(users: Users, names: Sequence[str], losses: Sequence[str], num_seeds: int) -> None:
    """All models, histories of at most ten titles; every title of training is a target once."""
    max_history = 10
    valid = [last_row(titles[:-1], max_history) for titles in users]
    catalog = list(dict.fromkeys(title for titles in users for title in titles))
    print("| model | loss | HR@10 | NDCG@10 | epochs | seconds |\n" + "|---" * 6 + "|", flush=True)
    for name in names:
        for loss in ("",) if name in COUNTING else losses:
            settings = CollaborativeConfig(model=name, loss=loss or "bce", patience=5)  # type: ignore[arg-type]
            # Popularity counts one target of a row, the others all: each sees every training title as a target once.
            step = 1 if name == "popularity" else max_history
            train = [
                last_row(titles[: end + 1], max_history) for titles in users for end in range(len(titles) - 3, 0, -step)
            ]
            values, epochs = [], []
            for seed in range(1 if name in ("popularity", "last_item") else num_seeds):
                started = time.monotonic()
                recommender = fit_recommender(settings, train, valid, catalog, seed=seed)
                seconds = time.monotonic() - started
                values.append((*hr_ndcg(unmet_ranks(recommender, users, max_history)), seconds))
                epochs.append(recommender.summary.best_epoch)
            hr, ndcg, seconds_text = spread(values)
            print(f"| {name} | {loss} | {hr} | {ndcg} | {np.mean(epochs):.0f} | {seconds_text} |", flush=True)


def unmet_ranks(recommender: Recommender, users: Users, max_history: int) -> Ints:
    """Titles before each test target among those that the user has not met, [B]; unknown targets are last."""
    index = {title: place for place, title in enumerate(recommender.titles)}
    scores_BI = recommender.scores([titles[:-1][-max_history:] for titles in users])
    for row, titles in enumerate(users):
        scores_BI[row, [index[title] for title in titles[:-1] if title in index and title != titles[-1]]] = -np.inf
    return target_ranks(scores_BI, np.array([index.get(titles[-1], -1) + 1 for titles in users]))


def hr_ndcg(ranks_B: Ints) -> tuple[float, float]:
    """HR@10 and NDCG@10."""
    hit_B = ranks_B < PLACES
    return float(hit_B.mean()), float(np.where(hit_B, 1 / np.log2(ranks_B + 2.0), 0).mean())


def spread(values: Sequence[tuple[float, float, float]]) -> list[str]:
    """HR and NDCG as mean ± sample standard deviation over seeds, and mean seconds."""
    table = np.array(values)
    deviation = table.std(axis=0, ddof=1) if len(table) > 1 else None
    texts = [f"{mean:.4f}" for mean in table.mean(axis=0)]
    if deviation is not None:
        texts = [f"{text} ± {width:.4f}" for text, width in zip(texts, deviation, strict=True)]
    return [*texts[:2], f"{table[:, 2].mean():.0f}"]


if __name__ == "__main__":
    main()
