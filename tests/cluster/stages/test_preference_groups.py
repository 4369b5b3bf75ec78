"""Which titles are rejected, by every way that the configuration names."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sprec_ray.cluster.stages.preference_groups import PreferenceGroups, needs_rollouts
from sprec_ray.config.load import load_config
from sprec_ray.data.catalog import Catalog
from sprec_ray.data.prompts import render_response
from sprec_ray.types import Example, Hypothesis, PreferenceGroup, Rollout

CATALOG = Catalog(titles=("Dune", "Emma", "1984", "Ulysses"), genres={})
EXAMPLES = [Example(example_id=str(row), history=("1984",), target="Dune") for row in range(40)]
PLACES = {"Dune": (0.0, 0.0), "Emma": (5.0, 0.0), "1984": (1.0, 0.0), "Ulysses": (9.0, 9.0)}


def embed(texts: Sequence[str]) -> np.ndarray:
    return np.array([PLACES[text] for text in texts], dtype=np.float32)


def scores(histories: Sequence[Sequence[str]]) -> np.ndarray:
    return np.array([[np.log(4.0), 0.0, 0.0, 0.0]] * len(histories), dtype=np.float32)


def reject(*arguments: str, rollouts: Mapping[str, Rollout] | None = None) -> list[PreferenceGroup]:
    data: Any = SimpleNamespace(catalog=CATALOG, popularity=Counter({"Dune": 5, "Ulysses": 2}))
    recommender: Any = SimpleNamespace(scores=scores)
    maker = PreferenceGroups(load_config(arguments), data, embed=lambda: embed, recommender=lambda: recommender)
    return maker.make(0, EXAMPLES, rollouts or {})[0]


def test_all_negatives_replaced_are_random_negatives() -> None:
    """SPRec with random_ratio 1 is SPRec-RN: the same titles, and nothing is decoded for them."""
    random, replaced = ("selfplay.negatives=random",), ("selfplay.random_ratio=1",)
    assert reject(*random) == reject(*replaced)
    assert not needs_rollouts(load_config(random))
    assert not needs_rollouts(load_config(replaced))
    assert needs_rollouts(load_config([]))


def test_random_negatives_are_the_prompt_s_where_it_lists_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [dataclasses.replace(row, candidates=("Emma", "Dune", "1984")) for row in EXAMPLES]
    monkeypatch.setattr(sys.modules[__name__], "EXAMPLES", listed)
    task = ("data.task=candidates", "data.num_candidates=3", "evaluation.k=[1]")
    random = reject(*task, "selfplay.negatives=random")
    assert {group.rejected for group in random} == {("Emma",), ("1984",)}
    assert reject(*task, "selfplay.random_ratio=1") == random
    own = Hypothesis(text=render_response("Ulysses"), logp=-1.0, num_tokens=3, finished=True)
    rollouts = {row.example_id: Rollout(example_id=row.example_id, hypotheses=(own,)) for row in listed}
    half = [group.rejected[0] for group in reject(*task, "selfplay.random_ratio=0.5", rollouts=rollouts)]
    assert half.count("Ulysses") == len(EXAMPLES) // 2
    assert set(half) == {"Ulysses", "Emma", "1984"}


def test_popular_titles_are_rejected_and_never_the_target() -> None:
    assert {group.rejected for group in reject("selfplay.negatives=popular")} == {("Ulysses",)}


def test_the_nearest_title_is_rejected() -> None:
    assert {group.rejected for group in reject("selfplay.negatives=similar")} == {("1984",)}
    two = reject("selfplay.negatives=similar", "selfplay.num_negatives=2", "preference.loss=softmax_dpo")
    assert {group.rejected for group in two} == {("1984", "Emma")}


def test_the_oracle_smooths_every_pair() -> None:
    """s(Dune) - s(other) = log 4, so the other is preferred with probability 1/5."""
    groups = reject("selfplay.negatives=similar", "preference.loss=rosepo", "preference.oracle=true")
    assert [group.smoothing for group in groups] == pytest.approx([0.2] * len(EXAMPLES))
    assert {group.smoothing for group in reject("selfplay.negatives=similar", "preference.loss=rosepo")} == {None}


def test_a_policy_without_usable_answers_has_collapsed() -> None:
    only_target = Hypothesis(text=render_response("Dune"), logp=-1.0, num_tokens=3, finished=True)
    rollouts = {
        example.example_id: Rollout(example_id=example.example_id, hypotheses=(only_target,)) for example in EXAMPLES
    }
    with pytest.raises(ValueError, match=r"^iteration 0: none of the 40 beams was a usable negative"):
        reject(rollouts=rollouts)
