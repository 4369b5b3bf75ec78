"""Sweeps as a user starts them: shared stages, a trial that cannot run, a killed process, the same command again."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jobs import tune
from sprec_ray.cluster.stages.sharing import origin
from sprec_ray.cluster.studies.tuning import SweepOutcome, tune_sweep
from sprec_ray.config.run import ConfigError
from sprec_ray.config.sweep import load_sweep
from sprec_ray.reports.sweep.results import TrialRecord, read_sweep
from sprec_ray.reports.sweep.rows import sweep_rows
from sprec_ray.storage.artifacts import read_json
from tests.fixture_types import Make, Train

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
SWEEP = """
name: sweep
base: [{tiny}]
set: {{preference.loss: softmax_dpo}}
parameters:
  selfplay.num_negatives: {{values: [1, 100]}}
  preference.beta: {{values: [0.1, 0.5]}}
max_failures: 0
"""


@pytest.fixture(scope="session")
def sweep_file(tiny_file: Path) -> Path:
    path = tiny_file.parent / "sweep.yaml"
    path.write_text(SWEEP.format(tiny=tiny_file.name))
    return path


@pytest.fixture(scope="session")
def sweep_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweeps")


@pytest.fixture(scope="session")
def swept(ray_session: None, sweep_file: Path, sweep_dir: Path) -> SweepOutcome:
    return tune_sweep(load_sweep([str(sweep_file), f"output_dir={sweep_dir}"]))


def records(outcome: SweepOutcome) -> dict[str, TrialRecord]:
    return {trial.name: trial for trial in outcome.data.trials}


def weights_of(run: Path, stage: str = "iteration-0/preference") -> bytes:
    return (run / stage / "adapter_model.safetensors").read_bytes()


def test_a_trial_that_cannot_run_ends_no_other(swept: SweepOutcome) -> None:
    assert {name: trial.status for name, trial in records(swept).items()} == {
        "num_negatives-1_beta-0.1": "finished",
        "num_negatives-1_beta-0.5": "finished",
        "num_negatives-100_beta-0.1": "failed",
        "num_negatives-100_beta-0.5": "failed",
    }
    assert swept.num_failed == 2
    failed = records(swept)["num_negatives-100_beta-0.1"]
    assert failed.error.startswith("ConfigError: selfplay.num_negatives=100 exceeds the 59 titles")
    assert swept.data.chosen in {"num_negatives-1_beta-0.1", "num_negatives-1_beta-0.5"}
    assert [result.label for result in records(swept)[swept.data.chosen].results] == ["sft", "iteration-0"]


def test_what_trials_have_in_common_is_made_once(swept: SweepOutcome, sweep_dir: Path) -> None:
    first, second = (records(swept)[f"num_negatives-1_beta-{beta}"] for beta in (0.1, 0.5))
    common = {"evaluations-valid/base", "sft", "evaluations-valid/sft", "iteration-0/sft", "iteration-0/groups"}
    assert first.shared == ("data",)
    assert common <= set(second.shared)
    assert second.shared_s is not None
    assert second.shared_s > 0
    folder = sweep_dir / "sweep" / "trials" / second.name
    assert origin(folder / "sft") == folder.parent / first.name
    assert origin(folder / "iteration-0" / "preference") is None
    assert "launch" not in {kind for kind, spent_s in second.seconds.items() if spent_s > 1}  # engines were kept


def test_a_shared_stage_holds_the_bytes_that_a_run_alone_computes(
    swept: SweepOutcome, sweep_dir: Path, train: Train, tiny: Make
) -> None:
    alone = train(tiny("alone", "preference.loss=softmax_dpo", "preference.beta=0.5")).report.parent
    shared = sweep_dir / "sweep" / "trials" / "num_negatives-1_beta-0.5"
    for stage in ("sft", "iteration-0/sft", "iteration-0/preference"):
        assert weights_of(shared, stage) == weights_of(alone, stage)
    for file in ("data/train.jsonl", "iteration-0/groups/groups.jsonl"):
        assert (shared / file).read_bytes() == (alone / file).read_bytes()


def test_the_report_and_rays_results_say_the_same(swept: SweepOutcome, sweep_dir: Path) -> None:
    folder = sweep_dir / "sweep"
    assert read_sweep(folder) == swept.data
    assert (folder / "sweep.html").is_file()
    last = {row["trial"]: row for row in sweep_rows(swept.data)}
    found = [result for result in swept.results if result.error is None]
    assert len(found) == 2
    for result in found:
        beta = result.config["parameters"]["preference.beta"]
        assert result.metrics["ndcg@5"] == last[f"num_negatives-1_beta-{beta}"]["ndcg@5"]
    assert len(swept.results.errors) == 2


def test_the_same_command_tries_what_failed_again_and_nothing_else(
    swept: SweepOutcome, sweep_file: Path, sweep_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = sweep_dir / "sweep" / "trials"
    before = {file: file.stat().st_mtime_ns for file in trials.rglob("_SUCCESS.json")}
    with pytest.raises(SystemExit) as left:
        tune.main([str(sweep_file), f"output_dir={sweep_dir}"])
    assert left.value.code == 1
    assert "2 of 4 trials failed" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in trials.rglob("_SUCCESS.json")} == before


def test_a_sweep_is_continued_only_with_its_settings(swept: SweepOutcome, sweep_file: Path, sweep_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"was made with sft.num_epochs=1, not 2; choose another name="):
        tune_sweep(load_sweep([str(sweep_file), f"output_dir={sweep_dir}", "sft.num_epochs=2"]))


@pytest.fixture
def killed_once(sweep_dir: Path) -> threading.Thread:
    """Kills the process that runs the trials, once, as soon as it has begun to train preferences."""

    def kill() -> None:
        log = sweep_dir / "own" / "killed" / "logs" / "beta-0.5.log"
        while not (log.is_file() and "iteration 0: softmax_dpo" in log.read_text()):
            time.sleep(0.05)
        os.kill(int(log.read_text().partition("process ")[2].split()[0]), signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


def test_a_trial_whose_process_is_killed_goes_on_in_another_and_ends_no_other(
    swept: SweepOutcome, sweep_file: Path, sweep_dir: Path, killed_once: threading.Thread
) -> None:
    """With one more chance; without any it has failed, like a trial that cannot run."""
    model = next((sweep_dir / "cache").glob("model-*"))  # and none of the stages
    shutil.copytree(model, sweep_dir / "own" / "cache" / model.name)
    own = sweep_file.parent / "killed.yaml"
    own.write_text(
        sweep_file.read_text()
        .replace("name: sweep", "name: killed")
        .replace("[0.1, 0.5]", "[0.5, 0.3]")
        .replace("  selfplay.num_negatives: {values: [1, 100]}\n", "")
        .replace("max_failures: 0", "max_failures: 1")
    )
    outcome = tune_sweep(load_sweep([str(own), f"output_dir={sweep_dir / 'own'}"]))
    killed_once.join(5)
    assert not killed_once.is_alive()
    assert {name: trial.status for name, trial in records(outcome).items()} == dict.fromkeys(
        ("beta-0.5", "beta-0.3"), "finished"
    )
    trials = sweep_dir / "own" / "killed" / "trials"
    other = sweep_dir / "sweep" / "trials" / "num_negatives-1_beta-0.5"
    assert weights_of(trials / "beta-0.5") == weights_of(other)
    assert weights_of(trials / "beta-0.3") != weights_of(other)


def test_optuna_draws_and_asha_stops(swept: SweepOutcome, sweep_file: Path, sweep_dir: Path) -> None:
    own = sweep_file.parent / "optuna.yaml"
    own.write_text(
        f"name: optuna\nbase: [{sweep_file.parent / 'tiny.yaml'}]\nsearch: optuna\nnum_trials: 1\n"
        "set: {selfplay.num_iterations: 2}\n"
        "parameters: {preference.beta: {low: 0.05, high: 0.5, log: true}}\n"
        "asha: {grace_iterations: 1, reduction_factor: 2}\nmetric: div_ratio@1\nmax_concurrent_trials: 1\n"
    )
    outcome = tune_sweep(load_sweep([str(own), f"output_dir={sweep_dir}"]))
    assert len(outcome.data.trials) == 1
    more = tune_sweep(load_sweep([str(own), f"output_dir={sweep_dir}", "num_trials=2"]))
    assert [trial.name for trial in more.data.trials[:1]] == [trial.name for trial in outcome.data.trials]
    assert len({trial.name for trial in more.data.trials}) == 2
    assert {trial.status for trial in more.data.trials} <= {"finished", "stopped"}
    for trial in more.data.trials:
        assert len(trial.results) == (3 if trial.status == "finished" else 2)
        assert 0.05 <= float(trial.parameters["preference.beta"] or 0) <= 0.5


def test_a_mistake_is_one_line_before_ray_starts(sweep_file: Path, tmp_path: Path) -> None:
    job = [sys.executable, "-m", "jobs.tune", str(sweep_file), f"output_dir={tmp_path}", "metric=ndcg@3"]
    done = subprocess.run(job, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert (
        done.stderr.strip().splitlines()[-1]
        == "error: ndcg@3 is not measured: evaluation.k=[1, 5]; choose one of these k"
    )
    assert "Traceback" not in done.stderr
    unknown = load_sweep([str(sweep_file), f"output_dir={tmp_path}", "metric=accuracy"])
    with pytest.raises(ConfigError, match=r"accuracy is no metric; known: hr@k, "):
        tune_sweep(unknown)
    worst = dataclasses.replace(unknown, metric="or_ratio@5", mode="max")
    with pytest.raises(ConfigError, match=r"^mode=max looks for the worst or_ratio@5; set mode=min$"):
        tune_sweep(worst)
    assert not (tmp_path / "sweep").exists()


def test_results_are_kept_without_a_report_of_the_run(swept: SweepOutcome, sweep_dir: Path) -> None:
    run = sweep_dir / "sweep" / "trials" / "num_negatives-1_beta-0.1"
    assert [entry["label"] for entry in read_json(run / "results-valid.json")["results"]][:3] == [
        "base",
        "sft",
        "iteration-0",
    ]
    assert not (run / "report.html").exists()
