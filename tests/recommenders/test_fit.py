"""Training: what is learned, when it ends, what is refused."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

import numpy as np
import pytest
import torch

from sprec_ray.config.methods import CollaborativeConfig
from sprec_ray.recommenders import fit
from sprec_ray.recommenders.fit import fit_recommender, target_ranks
from sprec_ray.recommenders.recommender import NETWORKS
from sprec_ray.types import Example

TITLES = tuple(f"T{n:02d}" for n in range(30))


def example(number: int) -> Example:
    """Four titles, with repeats, of one of six groups of five; the group is all that there is to learn."""
    group = np.array(TITLES).reshape(6, 5)[number % 6]
    drawn = np.random.default_rng(number).choice(group, size=4).tolist()
    return Example(example_id=str(number), history=tuple(drawn[:-1]), target=drawn[-1])


TRAIN = [example(number) for number in range(120)]
VALID = [example(number) for number in range(120, 180)]


@pytest.mark.parametrize("loss", ["bce", "softmax"])
@pytest.mark.parametrize("model", NETWORKS)
def test_every_network_learns_which_titles_go_together(model: str, loss: str) -> None:
    """Who knows the group and nothing else ranks the target uniformly among the first five: NDCG 0.59; chance: 0.15."""
    settings = CollaborativeConfig(
        model=model,  # type: ignore[arg-type]
        loss=loss,  # type: ignore[arg-type]
        hidden_size=16,
        dropout=0.0,
        num_negatives=4,
        learning_rate=1e-2,
        batch_size=32,
        num_epochs=60,
    )
    assert fit_recommender(settings, TRAIN, VALID, TITLES, seed=0).summary.valid_ndcg > 0.45


def test_training_ends_after_patience_and_keeps_the_best_epoch() -> None:
    seen: list[tuple[int, int, float]] = []
    settings = CollaborativeConfig(hidden_size=8, batch_size=16, num_epochs=60, patience=3, learning_rate=0.05)
    recommender = fit_recommender(
        settings, TRAIN, VALID[:9], TITLES, seed=0, progress=lambda *values: seen.append(values)
    )
    ndcgs = [ndcg for _, _, ndcg in seen]
    summary = recommender.summary
    assert [epoch for epoch, _, _ in seen] == list(range(1, summary.num_epochs + 1))
    assert {most for _, most, _ in seen} == {60}
    assert summary.best_epoch == 1 + int(np.argmax(ndcgs))
    assert summary.num_epochs == min(60, summary.best_epoch + 3)
    index = {title: place for place, title in enumerate(TITLES, start=1)}
    ranks = target_ranks(
        recommender.scores([row.history for row in VALID[:9]]), np.array([index[row.target] for row in VALID[:9]])
    )
    assert np.where(ranks < 10, 1 / np.log2(ranks + 2.0), 0).mean() == pytest.approx(max(ndcgs))
    assert summary.valid_ndcg == pytest.approx(max(ndcgs))


def test_without_validation_rows_all_epochs_run_and_the_measure_is_not_a_number(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = CollaborativeConfig(hidden_size=8, num_epochs=4, patience=1)
    summary = fit_recommender(settings, TRAIN, [], TITLES, seed=0).summary
    assert (summary.num_epochs, summary.best_epoch) == (4, 4)
    assert math.isnan(summary.valid_ndcg)
    assert "no validation rows" in caplog.text


@pytest.mark.parametrize("model", ["sasrec", "gcsan"])
def test_a_model_that_diverges_keeps_its_best_epoch_or_says_so(
    model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its weights are not numbers after the epoch in which the loss is not."""
    usual, calls = fit._loss, list[int]()

    def diverging(settings: Any, *arguments: Any) -> Any:
        calls.append(1)
        return usual(settings, *arguments) * (math.nan if len(calls) > last_good else 1)

    monkeypatch.setattr(fit, "_loss", diverging)
    settings = CollaborativeConfig(model=model, hidden_size=8, batch_size=len(TRAIN), num_epochs=9)
    last_good = 3
    recommender = fit_recommender(settings, TRAIN, VALID, TITLES, seed=0)
    assert (recommender.summary.num_epochs, len(calls)) == (3, 4)
    assert np.isfinite(recommender.scores([("T00",)])).all()
    assert f"{model} diverged in epoch 4: epoch {recommender.summary.best_epoch} is kept" in caplog.text
    huge = dataclasses.replace(settings, learning_rate=1e30)  # weights are numbers, scores are not
    monkeypatch.setattr(fit, "_loss", usual)
    with pytest.raises(ValueError, match=r"diverged in its first epoch; lower collaborative.learning_rate=1e\+30"):
        fit_recommender(huge, TRAIN, VALID, TITLES, seed=0)
    monkeypatch.setattr(fit, "_loss", diverging)
    last_good = 0
    with pytest.raises(ValueError, match=rf"{model} diverged in its first epoch; lower collaborative.learning_rate"):
        fit_recommender(settings, TRAIN, VALID, TITLES, seed=0)


def test_the_global_generator_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    fit_recommender(CollaborativeConfig(hidden_size=8, num_epochs=1), TRAIN, VALID, TITLES, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_network_that_does_not_beat_counting_says_so(caplog: pytest.LogCaptureFixture) -> None:
    settings = CollaborativeConfig(hidden_size=8, num_epochs=1)
    fit_recommender(settings, TRAIN, VALID, TITLES, seed=0)
    assert "sasrec does not beat last_item on the validation rows" in caplog.text


def test_rows_without_known_titles_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    unknown = [
        Example(example_id="a", history=("T00",), target="?"),
        Example(example_id="b", history=("?",), target="T00"),
        Example(example_id="c", history=(), target="T00"),
    ]
    settings = CollaborativeConfig(model="popularity")
    with caplog.at_level(logging.WARNING):
        summary = fit_recommender(settings, [*TRAIN, *unknown], [*VALID, unknown[0]], TITLES, seed=0).summary
    assert summary.num_rows == 120
    assert "3 of 123 training rows" in caplog.text
    assert summary.valid_ndcg == pytest.approx(
        fit_recommender(settings, TRAIN, VALID, TITLES, seed=0).summary.valid_ndcg * 60 / 61
    )
    with pytest.raises(ValueError, match="none of 3 training rows"):
        fit_recommender(settings, unknown, VALID, TITLES, seed=0)


def test_a_row_that_holds_the_whole_catalogue_has_no_negatives() -> None:
    row = Example(example_id="a", history=("A", "B"), target="C")
    with pytest.raises(ValueError, match=r"holds all 3 titles .* set collaborative.loss=softmax"):
        fit_recommender(CollaborativeConfig(), [row], [row], ("A", "B", "C"), seed=0)
    fit_recommender(CollaborativeConfig(loss="softmax", num_epochs=1), [row], [row], ("A", "B", "C"), seed=0)


def test_ranks_count_ties_in_the_order_of_the_catalogue() -> None:
    scores_BI = np.array([[0.5, 1.0, 0.5, 0.5]] * 4, dtype=np.float32)
    assert target_ranks(scores_BI, np.array([1, 2, 4, 0])).tolist() == [1, 0, 3, 4]
