"""Sweep files: what they may say, which trials they make, and the sentence that answers a mistake."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from sprec_ray.config.load import load_config
from sprec_ray.config.run import ConfigError
from sprec_ray.config.sweep import load_sweep, make_trial, planned_trials, trial_command

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
BETA = "parameters: {preference.beta: {values: [0.1]}}"


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").write_text("data: {source: demo}\npreference: {loss: softmax_dpo}\n")
    return tmp_path / "mine.yaml"


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_shipped_sweeps_load(path: Path) -> None:
    """DMPO's files hold no validation rows; its studies choose nothing."""
    sweep = load_sweep([str(path), "data.path=x"])
    assert sweep.split == ("test" if path.name.startswith("dmpo_negatives") else "valid")


def test_a_grid_has_every_combination_under_a_name_that_is_no_override(sweep_file: Path) -> None:
    sweep_file.write_text(
        "base: [run.yaml]\nparameters: {preference.beta: {values: [0.1, 5e-1]}, selfplay.num_negatives: "
        "{values: [1, 2]}}"
    )
    trials = planned_trials(load_sweep([str(sweep_file)]))
    assert [trial.name for trial in trials] == [
        "beta-0.1_num_negatives-1",
        "beta-0.1_num_negatives-2",
        "beta-5e-1_num_negatives-1",
        "beta-5e-1_num_negatives-2",
    ]
    assert [trial.config.preference.beta for trial in trials] == [0.1, 0.1, 0.5, 0.5]
    assert {trial.config.output_dir for trial in trials} == {"runs/mine/trials"}
    assert all(trial.config.share_stages for trial in trials)


def test_settings_that_end_alike_are_told_apart_in_names(sweep_file: Path) -> None:
    sweep_file.write_text(
        "base: [run.yaml]\nparameters: {sft.learning_rate: {values: [0.1]}, preference.learning_rate: {values: [0.2]}}"
    )
    (trial,) = planned_trials(load_sweep([str(sweep_file)]))
    assert trial.name == "sft-learning_rate-0.1_preference-learning_rate-0.2"


def test_random_trials_are_drawn_once_and_the_same_again(sweep_file: Path) -> None:
    sweep_file.write_text(
        "base: [run.yaml]\nsearch: random\nnum_trials: 20\n"
        "parameters: {preference.beta: {low: 0.01, high: 1, log: true}, sft.num_epochs: {low: 1, high: 3, whole: true}}"
    )
    trials = planned_trials(load_sweep([str(sweep_file)]))
    assert [trial.name for trial in trials] == [trial.name for trial in planned_trials(load_sweep([str(sweep_file)]))]
    assert len({trial.name for trial in trials}) == 20
    assert {trial.config.sft.num_epochs for trial in trials} == {1, 2, 3}
    assert all(0.01 <= trial.config.preference.beta <= 1 for trial in trials)
    other = planned_trials(load_sweep([str(sweep_file), "search_seed=1"]))
    assert {trial.name for trial in other} != {trial.name for trial in trials}


def test_random_trials_end_when_the_values_have_no_more_combinations(sweep_file: Path) -> None:
    sweep_file.write_text("base: [run.yaml]\nsearch: random\nnum_trials: 9\nparameters: {seed: {values: [1, 2]}}")
    assert {trial.config.seed for trial in planned_trials(load_sweep([str(sweep_file)]))} == {1, 2}


def test_a_drawn_number_is_set_as_it_is_named(sweep_file: Path) -> None:
    sweep_file.write_text(
        "base: [run.yaml]\nsearch: optuna\nnum_trials: 1\nparameters: {preference.beta: {low: 0.1, high: 1}}"
    )
    trial = make_trial(load_sweep([str(sweep_file)]), {"preference.beta": 0.123456789})
    assert (trial.name, trial.config.preference.beta) == ("beta-0.1235", 0.1235)


def test_the_command_of_a_trial_makes_the_run_of_the_trial(sweep_file: Path) -> None:
    sweep_file.write_text(f"base: [run.yaml]\nset: {{sft: {{num_epochs: 3}}, evaluation.k: [1, 5]}}\n{BETA}")
    sweep = load_sweep([str(sweep_file), "selfplay.num_iterations=2", "preference.learning_rate=3e-4"])
    (trial,) = planned_trials(sweep)
    python, *arguments = shlex.split(trial_command(sweep, trial))
    assert (python, arguments[:2]) == ("python", ["-m", "jobs.train_selfplay"])
    alone = load_config(arguments[2:])
    assert alone.name == "mine_beta-0.1"
    assert not alone.share_stages
    for section in ("data", "model", "training", "sft", "preference", "selfplay", "evaluation", "seed"):
        assert getattr(alone, section) == getattr(trial.config, section)
    assert (alone.sft.num_epochs, alone.selfplay.num_iterations, alone.preference.learning_rate) == (3, 2, 3e-4)


def test_the_sweeps_own_keys_are_overridden_beside_the_settings_of_its_runs(sweep_file: Path) -> None:
    sweep_file.write_text(f"base: [run.yaml]\nasha: {{grace_iterations: 1}}\n{BETA}")
    sweep = load_sweep([str(sweep_file), "name=other", "asha.reduction_factor=3", "max_concurrent_trials=2", "seed=7"])
    assert (sweep.name, sweep.max_concurrent_trials) == ("other", 2)
    assert sweep.asha is not None
    assert (sweep.asha.grace_iterations, sweep.asha.reduction_factor) == (1, 3)
    assert planned_trials(sweep)[0].config.seed == 7


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (BETA, r"base is missing"),
        ("base: [run.yaml]", r"parameters is missing"),
        ("base: [none.yaml]\n" + BETA, r"none.yaml: no such configuration file"),
        ("base: [run.yaml]\nparameters: {preference.betta: {values: [1]}}", r"did you mean preference.beta\?"),
        ("base: [run.yaml]\nparameters: {preference.beta: {valuess: [1]}}", r"beta.valuess: unknown key"),
        ("base: [run.yaml]\nparameters: {preference.beta: {low: 1}}", r"needs low: and high:"),
        ("base: [run.yaml]\nparameters: {preference.beta: {}}", r"either values: \[...\] or low: and high:"),
        ("base: [run.yaml]\nparameters: {preference.beta: {low: 0, high: 1, log: true}}", r"low above 0"),
        ("base: [run.yaml]\nparameters: {preference.beta: {low: 1, high: 2}}", r"search=grid needs values"),
        ("base: [run.yaml]\nparameters: {preference.beta: {values: [0]}}", r"trial beta-0: preference.beta=0"),
        (
            "base: [run.yaml]\nset: {preference.loss: dpo}\nparameters: {selfplay.num_negatives: {values: [1, 2]}}",
            r"trial num_negatives-2: selfplay.num_negatives=2 needs preference.loss=softmax_dpo",
        ),
        ("base: [run.yaml]\nparameters: {data.seed: {values: [1]}}", r"cannot be compared; put it under set:"),
        ("base: [run.yaml]\nmetric: ndcg@7\n" + BETA, r"ndcg@7 is not measured: evaluation.k=\[1, 5\]"),
        ("base: [run.yaml]\nnum_trials: 7\n" + BETA, r"search=grid tries every combination"),
        ("base: [run.yaml]\nsearch: optuna\n" + BETA, r"num_trials=None: search=optuna needs it"),
        ("base: [run.yaml]\nsearch: optima\n" + BETA, r"search='optima': input should be"),
        ("base: [run.yaml]\nasha: {grace: 1}\n" + BETA, r"asha.grace: unknown key"),
        ("base: [run.yaml]\nasha: {grace_iterations: 9}\n" + BETA, r"asha.grace_iterations=9 leaves nothing to stop"),
        ("base: [run.yaml]\nmax_concurrent_trials: 0\n" + BETA, r"0 is neither a whole number above 0 nor auto"),
        ("base: [run.yaml]\nname: a/b\n" + BETA, r"name='a/b' must be a folder name"),
        ("base: [run.yaml]\noutput_dir: s3://bucket\n" + BETA, r"s3://bucket: trials share files by links"),
    ],
)
def test_a_mistake_is_answered_with_one_sentence(text: str, sentence: str, sweep_file: Path) -> None:
    sweep_file.write_text(text)
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_sweep([str(sweep_file)])
    assert "\n" not in str(caught.value)


def test_a_sweep_file_comes_first() -> None:
    with pytest.raises(ConfigError, match="give a sweep file first"):
        load_sweep(["name=x"])
    with pytest.raises(ConfigError, match=r"nowhere.yaml: no such configuration file"):
        load_sweep(["nowhere.yaml"])
