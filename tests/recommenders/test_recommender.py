"""A recommender's scores, and its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest

from sprec_ray.config.methods import CollaborativeConfig
from sprec_ray.recommenders.fit import fit_recommender
from sprec_ray.recommenders.recommender import (
    DESCRIPTION,
    NETWORKS,
    WEIGHTS,
    Recommender,
    log_softmax,
    read_recommender,
)
from sprec_ray.recommenders.targets import TARGETS
from sprec_ray.storage.artifacts import ArtifactError
from sprec_ray.types import Example

TITLES = tuple("ABCDEFGHIJKL")
MODELS = get_args(get_type_hints(CollaborativeConfig)["model"])


def rows(count: int = 48) -> list[Example]:
    """Histories of one to three letters in the order of the alphabet, and the letter after them; L is never there."""
    return [
        Example(
            example_id=f"{n}:3",
            history=tuple(TITLES[(n + i) % 11] for i in range(1 + n % 3)),
            target=TITLES[(n + 1 + n % 3) % 11],
        )
        for n in range(count)
    ]


def fitted(model: str, *, seed: int = 0, **settings: object) -> Recommender:
    values = {"hidden_size": 8, "num_epochs": 3, "batch_size": 16, **settings}
    config = CollaborativeConfig(model=model, **values)  # type: ignore[arg-type]
    return fit_recommender(config, rows(), rows(12), TITLES, seed=seed)


@pytest.mark.parametrize("model", MODELS)
def test_a_recommender_reads_back_with_the_same_scores(model: str, tmp_path: Path) -> None:
    recommender = fitted(model)
    recommender.save(tmp_path)
    again = read_recommender(tmp_path)
    histories = [("A", "B"), (), ("L",), ("unheard of", "C"), TITLES * 2]
    np.testing.assert_array_equal(again.scores(histories), recommender.scores(histories))
    assert (again.settings, again.titles, again.summary) == (
        recommender.settings,
        recommender.titles,
        recommender.summary,
    )


@pytest.mark.parametrize("model", MODELS)
def test_every_title_has_a_score_after_every_history(model: str) -> None:
    """L is in no training row, and the last history is longer than any of training."""
    scores_BI = fitted(model).scores([(), ("L",), ("unheard of",), ("A", "A", "B"), TITLES * 2])
    assert scores_BI.shape == (5, 12)
    assert scores_BI.dtype == np.float32
    assert np.isfinite(scores_BI).all()
    np.testing.assert_array_equal(scores_BI[0], scores_BI[2])


@pytest.mark.parametrize("model", MODELS)
def test_scores_do_not_depend_on_the_batch_nor_on_unknown_titles(model: str) -> None:
    recommender = fitted(model)
    together = recommender.scores([("A",), ("unheard of", "B", "C"), ("D", "E")])
    for row, history in enumerate([("A",), ("B", "unheard of", "C"), ("D", "E")]):
        np.testing.assert_allclose(recommender.scores([history])[0], together[row], atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(model: str, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        fitted(model, seed=seed).save(tmp_path / name)
    contents = [(tmp_path / name / WEIGHTS).read_bytes() for name in ("one", "two", "other")]
    assert contents[0] == contents[1]
    assert (contents[0] != contents[2]) == (model not in ("popularity", "last_item"))


def test_every_network_of_the_configuration_is_there_and_knows_what_it_is_asked() -> None:
    assert set(NETWORKS) == set(TARGETS) == set(MODELS) - {"popularity", "last_item", "random"}


def test_log_softmax_is_the_logarithm_of_shares_that_sum_to_one() -> None:
    """Scores 0 and log 3 have shares 1/4 and 3/4, whatever is added to both."""
    scores_BI = np.array([[0.0, np.log(3)], [1000.0, 1000 + np.log(3)]])
    logps_BI = log_softmax(scores_BI)
    assert logps_BI.dtype == np.float64
    np.testing.assert_allclose(np.exp(logps_BI), [[0.25, 0.75]] * 2, rtol=1e-12)


def test_popularity_and_last_item_are_log_probabilities() -> None:
    for model in ("popularity", "last_item"):
        scores_BI = fitted(model).scores([("A",), ()])
        np.testing.assert_allclose(np.exp(scores_BI.astype(np.float64)).sum(axis=1), 1, rtol=1e-6)


def test_a_measure_that_is_not_defined_reads_back_as_not_a_number(tmp_path: Path) -> None:
    fit_recommender(CollaborativeConfig(model="popularity"), rows(), [], TITLES, seed=0).save(tmp_path)
    summary = read_recommender(tmp_path).summary
    assert np.isnan([summary.valid_ndcg, *summary.baselines.values()]).all()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    recommender = fitted("sasrec")

    def damaged(name: str, content: bytes) -> str:
        recommender.save(tmp_path)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError) as error:
            read_recommender(tmp_path)
        return str(error.value)

    recommender.save(tmp_path)
    weights, text = (tmp_path / WEIGHTS).read_bytes(), (tmp_path / DESCRIPTION).read_text()
    assert WEIGHTS in damaged(WEIGHTS, weights[:-9])
    assert WEIGHTS in damaged(WEIGHTS, b"")
    assert DESCRIPTION in damaged(DESCRIPTION, b"{")
    assert DESCRIPTION in damaged(DESCRIPTION, b"{}")
    assert DESCRIPTION in damaged(DESCRIPTION, b"[]")
    wider = json.loads(text)
    wider["settings"]["hidden_size"] = 16
    message = damaged(DESCRIPTION, json.dumps(wider).encode())
    assert "size mismatch" in message
    assert "\n" not in message
    recommender.save(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match="does not exist"):
        read_recommender(tmp_path)
