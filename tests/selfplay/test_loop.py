from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from sprec_ray.config.load import make_config
from sprec_ray.config.run import RunConfig
from sprec_ray.selfplay.loop import reference_of, run_self_play
from sprec_ray.types import AdapterCheckpoint, EvalResult, Example, PreferenceGroup

Call = tuple[Any, ...]


class FakeStages:
    """Records calls; adapters are named by what made them: A0, S0 (SFT of iteration 0), P0 (preferences) and so on."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def _adapter(self, path: str) -> AdapterCheckpoint:
        return AdapterCheckpoint(path=path, version=len(self.calls))

    def first_sft(self) -> AdapterCheckpoint:
        self.calls.append(("first_sft",))
        return self._adapter("A0")

    def sample(self, iteration: int) -> Sequence[Example]:
        self.calls.append(("sample", iteration))
        return [Example(example_id=f"of-{iteration}", history=("Emma",), target="Dune")]

    def start_decoding(self, iteration: int, policy: AdapterCheckpoint, examples: Sequence[Example]) -> Any:
        assert examples[0].example_id == f"of-{iteration}"
        self.calls.append(("start_decoding", iteration, policy.path))
        return f"decoding-{iteration}"

    def train_sft(self, iteration: int, init: AdapterCheckpoint, examples: Sequence[Example]) -> AdapterCheckpoint:
        assert examples[0].example_id == f"of-{iteration}"
        self.calls.append(("train_sft", iteration, init.path))
        return self._adapter(f"S{iteration}")

    def pair(self, iteration: int, examples: Sequence[Example], decoding: Any) -> Sequence[PreferenceGroup]:
        assert decoding == f"decoding-{iteration}"
        self.calls.append(("pair", iteration))
        chosen = examples[0].target
        return [
            PreferenceGroup(example_id=examples[0].example_id, history=("Emma",), chosen=chosen, rejected=("1984",))
        ]

    def train_preferences(
        self,
        iteration: int,
        init: AdapterCheckpoint,
        reference: AdapterCheckpoint | None,
        groups: Sequence[PreferenceGroup],
    ) -> AdapterCheckpoint:
        assert groups[0].example_id == f"of-{iteration}"
        self.calls.append(("train_preferences", iteration, init.path, reference and reference.path))
        return self._adapter(f"P{iteration}")

    def evaluate(self, label: str, policy: AdapterCheckpoint | None) -> Callable[[], EvalResult]:
        self.calls.append(("evaluate", label, policy and policy.path))
        return lambda: self._measured(label)

    def _measured(self, label: str) -> EvalResult:
        self.calls.append(("measured", label))
        return EvalResult(label=label, metrics={}, counts={})


def configuration(**selfplay: Any) -> RunConfig:
    reference = selfplay.pop("reference", "post_sft")
    return make_config({"selfplay": {"num_iterations": 2, **selfplay}, "preference": {"reference": reference}})


def calls_of(config: RunConfig) -> list[Call]:
    stages = FakeStages()
    run_self_play(config, stages)
    return [call for call in stages.calls if call[0] != "measured"]


def named(calls: list[Call], name: str) -> list[Call]:
    return [call[1:] for call in calls if call[0] == name]


def test_a_run_makes_these_calls_in_this_order() -> None:
    """METHODS.md: decode with A_t, begun before the SFT that it may overlap; SFT; pair; DPO against S_t; evaluate."""
    assert calls_of(configuration()) == [
        ("evaluate", "base", None),
        ("first_sft",),
        ("evaluate", "sft", "A0"),
        ("sample", 0),
        ("start_decoding", 0, "A0"),
        ("train_sft", 0, "A0"),
        ("pair", 0),
        ("train_preferences", 0, "S0", "S0"),
        ("evaluate", "iteration-0", "P0"),
        ("sample", 1),
        ("start_decoding", 1, "P0"),
        ("train_sft", 1, "P0"),
        ("pair", 1),
        ("train_preferences", 1, "S1", "S1"),
        ("evaluate", "iteration-1", "P1"),
    ]


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("post_sft", [("S0", "S0"), ("S1", "S1")]),
        ("pre_sft", [("S0", "A0"), ("S1", "P0")]),
        ("sft0", [("S0", "A0"), ("S1", "A0")]),
        ("base", [("S0", None), ("S1", None)]),
    ],
)
def test_reference_policy_of_each_iteration(reference: str, expected: list[tuple[str, str | None]]) -> None:
    calls = named(calls_of(configuration(reference=reference)), "train_preferences")
    assert [call[1:] for call in calls] == expected


def test_an_unknown_reference_is_an_error() -> None:
    adapter = AdapterCheckpoint(path="A0", version=0)
    with pytest.raises(KeyError):
        reference_of("other", pre_sft=adapter, post_sft=adapter, sft0=adapter)


@pytest.mark.parametrize("reference", ["post_sft", "pre_sft"])
def test_without_sft_the_preferences_continue_the_policy(reference: str) -> None:
    """noSFT: init and both references of an iteration are A_t."""
    calls = calls_of(configuration(sft=False, reference=reference))
    assert named(calls, "train_sft") == []
    assert named(calls, "start_decoding") == [(0, "A0"), (1, "P0")]
    assert named(calls, "train_preferences") == [(0, "A0", "A0"), (1, "P0", "P0")]


def test_without_preferences_nothing_is_decoded() -> None:
    """noDPO: SFT after SFT on the same examples as the full run."""
    calls = calls_of(configuration(preference=False))
    assert [call for call in calls if call[0] != "evaluate"] == [
        ("first_sft",),
        ("sample", 0),
        ("train_sft", 0, "A0"),
        ("sample", 1),
        ("train_sft", 1, "S0"),
    ]
    assert named(calls, "evaluate") == [("base", None), ("sft", "A0"), ("iteration-0", "S0"), ("iteration-1", "S1")]


def test_zero_iterations_measure_the_first_sft() -> None:
    stages = FakeStages()
    results = run_self_play(configuration(num_iterations=0), stages)
    assert [result.label for result in results] == ["base", "sft"]
    assert [call[0] for call in stages.calls if call[0] != "measured"] == ["evaluate", "first_sft", "evaluate"]


def test_results_come_in_order_and_are_waited_for_at_the_end() -> None:
    stages = FakeStages()
    labels = ["base", "sft", "iteration-0", "iteration-1"]
    assert [result.label for result in run_self_play(configuration(), stages)] == labels
    assert stages.calls[-4:] == [("measured", label) for label in labels]
    assert [call for call in stages.calls[:-4] if call[0] == "measured"] == []


def test_the_base_model_is_measured_only_when_asked() -> None:
    config = make_config({"selfplay": {"num_iterations": 0}, "evaluation": {"base": False}})
    assert calls_of(config) == [("first_sft",), ("evaluate", "sft", "A0")]
