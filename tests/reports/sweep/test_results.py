"""sweep.json: what is written is read back, and damage is named."""

import json
import math

import pytest

from sprec_ray.reports.sweep.results import SweepData, SweepParameter, TrialRecord, read_sweep, write_sweep
from sprec_ray.storage.artifacts import ArtifactError
from sprec_ray.types import EvalResult

SWEEP = SweepData(
    name="sweep",
    metric="ndcg@5",
    diversity="div_ratio@5",
    parameters=(
        SweepParameter(name="preference.beta", low=0.01, high=1.0, log=True),
        SweepParameter(name="preference.loss", values=("dpo", "softmax_dpo", None, 1, 0.5, True)),
    ),
    trials=(
        TrialRecord(
            name="a",
            parameters={"preference.beta": 0.1, "preference.loss": "dpo"},
            status="finished",
            results=(
                EvalResult(label="sft", metrics={"ndcg@5": 0.5}, counts={"num_rows": 10}, top_items=(("Dune", 3),)),
                EvalResult(label="iteration-0", metrics={"ndcg@5": 0.25}, counts={}, genre_gaps={"Drama": -0.1}),
            ),
            seconds={"compute": 1.5},
            total_s=2.5,
            shared=("data", "sft"),
            shared_s=4.0,
            command="python -m jobs.train_selfplay",
        ),
        TrialRecord(name="b", parameters={}, status="failed", error="ValueError: no"),
    ),
    chosen="a",
    versions={"torch": "2"},
)


def test_a_sweep_is_read_back_as_it_was_written(tmp_path):
    write_sweep(tmp_path, SWEEP)
    assert read_sweep(tmp_path) == SWEEP


def test_an_undefined_metric_is_null_in_the_file_and_nan_when_read(tmp_path):
    result = EvalResult(label="sft", metrics={"mgu@1": math.nan}, counts={})
    trial = TrialRecord(name="a", parameters={}, status="stopped", results=(result,))
    write_sweep(tmp_path, SweepData(name="s", metric="mgu@1", diversity="div_ratio@1", parameters=(), trials=(trial,)))
    assert json.loads((tmp_path / "sweep.json").read_text())["trials"][0]["results"][0]["metrics"] == {"mgu@1": None}
    assert math.isnan(read_sweep(tmp_path).trials[0].results[0].metrics["mgu@1"])


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"name": "x", "trials": [1], "parameters": []}'])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"sweep\.json is damaged"):
        read_sweep(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"sweep\.json does not exist"):
        read_sweep(tmp_path)
