"""A trial between Tune and a run: it stands still between policies, ends when told to, and hands on its engines."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sprec_ray.cluster.studies import trial_process as sweep_trial
from sprec_ray.cluster.studies.trial_process import SweepPlan, TrialProcess, TrialStopped, num_iterations
from sprec_ray.config.sweep import load_sweep
from sprec_ray.types import EvalResult


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A trial whose run is a loop over labels; what it did is in ``done``."""
    (tmp_path / "run.yaml").write_text("data: {source: demo}\n")
    file = tmp_path / "mine.yaml"
    file.write_text("base: [run.yaml]\nparameters: {preference.beta: {values: [0.1, 0.2]}}")
    done: list[Any] = []
    kept: list[Any] = []

    @contextmanager
    def open_run(config: Any) -> Iterator[Path]:
        done.append(config.name)
        try:
            yield tmp_path
        finally:
            done.append("closed")

    @contextmanager
    def open_stages(config: Any, folder: Path, **options: Any) -> Iterator[Any]:
        kept.append(options["kept"])

        def run(*, on_result: Any) -> list[EvalResult]:
            for label in ("sft", "iteration-0", "iteration-1"):
                done.append(label)
                if config.preference.beta == 0.2 and label == "iteration-1":
                    raise ValueError("the policy has collapsed")
                on_result(EvalResult(label=label, metrics={"ndcg@5": 0.5}, counts={}))
            return []

        yield SimpleNamespace(prepare=lambda: None, run=run)

    monkeypatch.setattr(sweep_trial, "open_run", open_run)
    monkeypatch.setattr(sweep_trial, "open_stages", open_stages)
    monkeypatch.setattr(sweep_trial, "write_results_of", lambda *_: done.append("written"))
    made = TrialProcess.__new__(TrialProcess)
    plan = SweepPlan(load_sweep([str(file)]), tmp_path)
    made.setup({"parameters": {"preference.beta": 0.1}}, plan=plan, folder=str(tmp_path))
    yield SimpleNamespace(trial=made, done=done, kept=kept)
    made.cleanup()


def test_a_step_is_a_policy_and_the_last_one_ends_the_run(trial: SimpleNamespace) -> None:
    steps = [trial.trial.step() for _ in range(4)]
    assert [(step["iteration"], step["label"]) for step in steps[:3]] == [
        (0, "sft"),
        (1, "iteration-0"),
        (2, "iteration-1"),
    ]
    assert ["done" in step for step in steps] == [False, False, False, True]
    assert steps[3]["ndcg@5"] == 0.5
    assert trial.done == ["beta-0.1", "sft", "iteration-0", "iteration-1", "written", "closed"]


def test_nothing_is_done_for_a_policy_before_the_scheduler_asks(trial: SimpleNamespace) -> None:
    trial.trial.step()
    trial.trial.step()
    threading.Event().wait(0.1)
    assert trial.done == ["beta-0.1", "sft", "iteration-0"]


def test_a_stopped_trial_gives_way_to_the_next_with_the_same_engines(trial: SimpleNamespace) -> None:
    trial.trial.step()
    stopped = trial.trial._running
    assert trial.trial.reset_config({"parameters": {"preference.beta": 0.2}})
    assert isinstance(stopped.exception(), TrialStopped)
    assert trial.done == ["beta-0.1", "sft", "closed"]
    assert trial.trial.step()["label"] == "sft"
    assert trial.done[3:] == ["beta-0.2", "sft"]
    assert trial.kept[0] is trial.kept[1]


def test_what_ends_a_run_is_raised(trial: SimpleNamespace) -> None:
    trial.trial.reset_config({"parameters": {"preference.beta": 0.2}})
    for _ in range(2):
        trial.trial.step()
    with pytest.raises(ValueError, match="the policy has collapsed"):
        trial.trial.step()
    assert trial.done[-1] == "closed"


def test_iterations_are_counted_after_the_first_sft() -> None:
    assert [num_iterations(label) for label in ("sft", "iteration-0", "iteration-9")] == [0, 1, 10]
