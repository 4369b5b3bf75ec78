"""Runs of pairs on real engines: few users, a small model, every stage."""

from __future__ import annotations

import dataclasses
import math
import shutil
import statistics
from pathlib import Path

import pytest
import yaml

from sprec_ray.cluster.engines.kept import KeptEngines
from sprec_ray.cluster.runs.results import read_results
from sprec_ray.cluster.runs.run import RunOutcome, evaluate_on_valid, run_folder, train_selfplay
from sprec_ray.cluster.stages.sharing import origin
from sprec_ray.cluster.studies.comparing import compare_methods
from sprec_ray.config.compare import load_comparison
from sprec_ray.config.load import config_to_dict, load_config
from sprec_ray.config.run import ConfigError, RunConfig
from sprec_ray.evaluation.pairs import PAIR_METRICS, pair_metrics
from sprec_ray.reports.compare.differences import significance_table
from sprec_ray.storage.artifacts import Stage, read_json, read_rows
from sprec_ray.types import JudgementGroup, PairExample
from tests.fixture_types import Make, Train

pytestmark = pytest.mark.slow

SETTINGS = """
data: {source: movielens, task: pairs, noun: movie, template: short, max_history: 12, min_judged: 3,
       num_train: 24, num_valid: 6, num_test: 20}
model:
  max_prompt_tokens: 200
  max_response_tokens: 40
  scratch: {vocab_size: 400, hidden_size: 32, num_layers: 2, num_heads: 2, num_epochs: 1, global_batch_size: 16}
  lora: {rank: 4, alpha: 8}
training: {num_threads: 1}
sft: {num_epochs: 1, global_batch_size: 12, micro_batch_size: 12, num_warmup_steps: 1}
preference: {loss: dmpo, global_batch_size: 12, micro_batch_size: 6, num_warmup_steps: 1}
selfplay: {num_iterations: 1, num_negatives: 3, negatives: random, sft: false}
"""


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Sixty users with opinions on 30 films; even ones are mostly liked."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "ml").mkdir()
    films = [f"{item}::Film {item}, The ({1950 + item})::Drama\n" for item in range(30)]
    stars = [
        f"{user}::{(user + 7 * place) % 30}::{1 + (3 * ((user + 7 * place) % 2 == 0)) + (user + place) % 2}::{place}\n"
        for user in range(60)
        for place in range(14)
    ]
    (folder / "ml" / "movies.dat").write_text("".join(films))
    (folder / "ml" / "ratings.dat").write_text("".join(stars))
    (folder / "pairs.yaml").write_text(SETTINGS)

    def make(name: str, *overrides: str) -> RunConfig:
        own = [f"data.path={folder / 'ml'}", f"output_dir={folder / 'runs'}", "share_stages=true", f"name={name}"]
        return load_config([str(folder / "pairs.yaml"), *own, *overrides])

    return make


@pytest.fixture(scope="module")
def dmpo(train: Train, make: Make) -> RunOutcome:
    return train(make("dmpo"))


def test_every_policy_is_measured_by_every_score(dmpo: RunOutcome) -> None:
    assert [result.label for result in dmpo.results] == [
        "base",
        "sft",
        "iteration-0",
        "popularity",
        "liked share",
        "random",
    ]
    for result in dmpo.results[:3]:
        for score in ("", "_mean_logp", "_sum_logp"):
            assert 0 <= result.metrics[f"auc{score}"] <= 1
            assert result.metrics[f"auc{score}_se"] > 0
        assert result.counts["num_rows"] == 20
    page = dmpo.report.read_text(encoding="utf-8")
    assert "AUC ↑" in page
    assert "pairwise accuracy ↑" in page


def test_metrics_are_those_of_the_written_scores(dmpo: RunOutcome) -> None:
    scores = read_json(dmpo.report.parent / "evaluations" / "sft" / "scores.json")
    right, wrong = zip(*(row["mean_probability"] for row in scores), strict=True)
    measured = {result.label: result.metrics for result in dmpo.results}["sft"]
    assert measured["auc"] == pytest.approx(pair_metrics(right, wrong)["auc"])
    assert all(row["answers"][0] == row["answers"][1][::-1] for row in scores)
    rows = read_json(dmpo.report.parent / "evaluations" / "sft" / "rows.json")
    assert rows["example_ids"] == [row["example_id"] for row in scores]
    assert {name: statistics.fmean(values) for name, values in rows["adds"].items()} == {
        name: pytest.approx(measured[name]) for name in PAIR_METRICS
    }


def test_training_takes_right_answers_and_then_groups_with_a_prompt_per_wrong_one(dmpo: RunOutcome) -> None:
    folder = dmpo.report.parent
    examples = {row.example_id: row for row in read_rows(folder / "data" / "train.jsonl", PairExample)}
    first = read_rows(folder / "sft" / "rows.jsonl", JudgementGroup)
    groups = read_rows(folder / "iteration-0" / "preference" / "rows.jsonl", JudgementGroup)
    assert len(first) == len(groups) == 24
    for row, group in zip(first, groups, strict=True):
        example = examples[group.example_id]
        assert row.answers == group.answers[:1] == ((example.liked, example.disliked[0]),)
        assert group.answers[1:] == tuple((title, example.liked) for title in example.disliked)
        assert all(set(named) == set(answer) for named, answer in zip(group.candidates, group.answers, strict=True))
    steps = read_json(folder / "iteration-0" / "preference" / "steps.json")
    assert steps[0]["loss"] == pytest.approx(math.log(2), rel=1e-3)  # policy = reference


def test_a_finished_run_does_nothing_and_a_deleted_evaluation_is_made_again(
    dmpo: RunOutcome, train: Train, make: Make
) -> None:
    assert train(make("dmpo")).was_finished
    config = make("dmpo")
    shutil.rmtree(run_folder(config) / "evaluations" / "iteration-0")
    (run_folder(config) / "results.json").unlink()
    # Shared stages would give the evaluation back.
    again = train(dataclasses.replace(config, share_stages=False))
    assert again.results == dmpo.results == read_results(run_folder(config))


def test_other_losses_and_numbers_share_the_first_stages(dmpo: RunOutcome, train: Train, make: Make) -> None:
    config = make("dpo", "preference.loss=dpo", "selfplay.num_negatives=1")
    outcome = train(config)
    assert outcome.results[:2] == dmpo.results[:2]
    assert origin(run_folder(config) / "sft") == dmpo.report.parent
    assert origin(run_folder(config) / "iteration-0" / "preference") is None
    groups = read_rows(run_folder(config) / "iteration-0" / "preference" / "rows.jsonl", JudgementGroup)
    assert {len(group.answers) for group in groups} == {2}


def test_tallrec_answers_yes_or_no(train: Train, make: Make) -> None:
    config = make("tallrec", "data.answer=yes_no", "selfplay.num_iterations=0", "evaluation.base=false")
    (sft, *_) = train(config).results
    assert 0 <= sft.metrics["auc"] <= 1
    assert "auc_sum_logp" not in sft.metrics
    rows = read_rows(run_folder(config) / "sft" / "rows.jsonl", JudgementGroup)
    assert [row.answers for row in rows[:2]] == [(("Yes.",),), (("No.",),)]


def test_a_recommender_is_measured_on_the_same_rows(train: Train, make: Make) -> None:
    outcome = train(make("popular", "recommender=collaborative", "collaborative.model=popularity"))
    assert outcome.results[0].label == "collaborative"
    assert outcome.results[0].counts["num_rows"] == 20
    assert 0 <= outcome.results[0].metrics["auc"] <= 1
    assert not Stage(outcome.report.parent / "sft").is_finished


def test_methods_are_compared_by_auc_and_accuracy(dmpo: RunOutcome, make: Make, tmp_path: Path) -> None:
    """The last policy of a run is what is compared, not a rule beside it, and differences are tested row by row."""
    (tmp_path / "pairs.yaml").write_text(yaml.safe_dump(config_to_dict(make("dmpo"))))
    (tmp_path / "methods").mkdir()
    methods = {
        "bigrec": "selfplay: {num_iterations: 0}",
        "dmpo": "preference: {loss: dmpo}",
        "popularity": "recommender: collaborative\ncollaborative: {model: popularity}",
    }
    for name, text in methods.items():
        (tmp_path / "methods" / f"{name}.yaml").write_text(text)
    data = compare_methods(
        load_comparison(
            [
                str(tmp_path / "pairs.yaml"),
                "methods=[bigrec,dmpo,popularity]",
                "seeds=[0]",
                f"output_dir={run_folder(make('dmpo')).parent}",
                "name=compared",
                "num_resamples=200",
            ]
        )
    ).data
    ours = {result.label: result.metrics for result in dmpo.results}
    assert data.values("dmpo", "auc") == [ours["iteration-0"]["auc"]]
    assert data.values("bigrec", "pair_accuracy") == [ours["sft"]["pair_accuracy"]]
    tested = {(found.method, found.rival, found.metric): found.difference for found in data.significance}
    for key in PAIR_METRICS:
        assert tested["dmpo", "bigrec", key] == pytest.approx(ours["iteration-0"][key] - ours["sft"][key])
    assert ("popularity", "bigrec", "auc") in tested
    assert ("popularity", "bigrec", "auc_sum_logp") not in tested
    assert "dmpo less bigrec" in significance_table(data)


def test_validation_rows_can_be_measured(dmpo: RunOutcome, kept: KeptEngines, make: Make) -> None:
    results = evaluate_on_valid(make("dmpo"), kept=kept)
    assert {result.counts["num_rows"] for result in results} == {6}


def test_more_negatives_than_there_are_is_one_sentence(ray_session: None, make: Make) -> None:
    with pytest.raises(ConfigError, match=r"selfplay.num_negatives=4, but a training row has only 3 disliked titles"):
        train_selfplay(make("many", "selfplay.num_negatives=4"))
