"""A run whose prompts list candidates, from raw interactions to its table: S-DPO, and SPRec on the same prompts."""

import math

import pytest

from sprec_ray.cluster.engines.kept import KeptEngines
from sprec_ray.cluster.runs.run import RunOutcome, evaluate_on_valid
from sprec_ray.reports.tables import format_table
from sprec_ray.storage.artifacts import read_json, read_rows
from sprec_ray.types import Example, PreferenceGroup
from tests.fixture_types import Make, Train

pytestmark = pytest.mark.slow

CANDIDATES = (
    *("data.task=candidates", "data.num_candidates=5", "model.max_prompt_tokens=240", "decoding.search=free"),
    *("model.scratch.num_epochs=20", "selfplay.num_negatives=3", "preference.loss=softmax_dpo", "share_stages=true"),
)
S_DPO = (*CANDIDATES, "selfplay.negatives=random", "selfplay.sft=false")


@pytest.fixture(scope="module")
def s_dpo(train: Train, tiny: Make) -> RunOutcome:
    return train(tiny("s-dpo", *S_DPO))


def test_a_run_measures_answers_under_both_rules_and_the_ranking(s_dpo: RunOutcome) -> None:
    assert [result.label for result in s_dpo.results] == [
        "base",
        "sft",
        "iteration-0",
        "popularity",
        "last_item",
        "random",
    ]
    for result in s_dpo.results:
        metrics = result.metrics
        assert 0 <= metrics["hit_ratio@1"] <= metrics["valid_ratio"] <= 1
        assert math.isfinite(metrics["hit_ratio_se@1"])
        assert metrics["hr@5"] == 1.0  # all five candidates
        assert metrics["hit_ratio_published@1"] <= metrics["valid_ratio_published"]
    assert "HitRatio@1" in format_table(s_dpo.results)
    assert "ValidRatio" in s_dpo.report.read_text()


def test_negatives_and_prompts_are_of_the_rows_own_candidates(s_dpo: RunOutcome) -> None:
    folder = s_dpo.report.parent
    rows = {row.example_id: row for row in read_rows(folder / "data" / "train.jsonl", Example)}
    groups = read_rows(folder / "iteration-0" / "groups" / "groups.jsonl", PreferenceGroup)
    assert len(groups) == 24
    for group in groups:
        assert group.candidates == rows[group.example_id].candidates
        assert len(set(group.rejected)) == 3
        assert {group.chosen, *group.rejected} < set(group.candidates)
    trained = read_rows(folder / "sft" / "rows.jsonl", PreferenceGroup)
    assert all(row.candidates for row in trained)
    prediction = read_json(folder / "evaluations" / "sft" / "predictions.json")[0]
    assert prediction["candidates"][0] in prediction["input"]


def test_a_finished_run_does_nothing_and_is_measured_on_the_validation_rows(
    s_dpo: RunOutcome, train: Train, kept: KeptEngines, tiny: Make
) -> None:
    config = tiny("s-dpo", *S_DPO)
    assert train(config).was_finished
    assert evaluate_on_valid(config, kept=kept)[0].counts["num_rows"] == 8


def test_another_number_of_negatives_shares_what_comes_before(s_dpo: RunOutcome, train: Train, tiny: Make) -> None:
    """One negative is DPO; its groups are the beginnings of those with three."""
    outcome = train(tiny("dpo-candidates", *S_DPO, "selfplay.num_negatives=1"))
    folders = [run.report.parent for run in (s_dpo, outcome)]
    assert (folders[1] / "sft" / "shared.json").is_file()
    assert outcome.results[1] == s_dpo.results[1]
    three, one = (read_rows(folder / "iteration-0" / "groups" / "groups.jsonl", PreferenceGroup) for folder in folders)
    assert [group.rejected[:1] for group in three] == [group.rejected for group in one]


def test_self_play_rejects_the_policys_own_answers_to_the_candidates(
    s_dpo: RunOutcome, train: Train, tiny: Make
) -> None:
    outcome = train(tiny("sprec-candidates", *CANDIDATES, "selfplay.num_negatives=1"))
    groups = read_rows(outcome.report.parent / "iteration-0" / "groups" / "groups.jsonl", PreferenceGroup)
    assert all(group.candidates and group.rejected != (group.chosen,) for group in groups)
