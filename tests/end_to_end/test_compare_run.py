"""A comparison as a user starts it: shared stages, a method that cannot run, a deleted run, the same command again."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path

import pytest

from jobs import compare
from sprec_ray.cluster.stages.sharing import origin
from sprec_ray.cluster.studies.comparing import CompareOutcome, compare_methods
from sprec_ray.config.compare import load_comparison
from sprec_ray.config.run import ConfigError
from sprec_ray.reports.compare.results import read_comparison
from sprec_ray.reports.compare.tables import table_columns
from sprec_ray.storage.artifacts import read_json
from tests.fixture_types import Make, Train

pytestmark = pytest.mark.slow

METHODS = {
    "bigrec": "selfplay: {num_iterations: 0}",
    "sprec": "preference: {loss: dpo, reference: pre_sft}",
    "popularity": "recommender: collaborative\ncollaborative: {model: popularity}",
    "greedy_for_negatives": "preference: {loss: softmax_dpo}\nselfplay: {num_negatives: 100}",
}


@pytest.fixture(scope="session")
def arguments(tiny_file: Path, output_dir: Path) -> list[str]:
    folder = tiny_file.parent / "methods"
    folder.mkdir()
    for name, text in METHODS.items():
        (folder / f"{name}.yaml").write_text(text)
    methods = f"methods=[{','.join(METHODS)}]"
    return [str(tiny_file), methods, "seeds=[0,1]", f"output_dir={output_dir}", "name=compared", "num_resamples=200"]


@pytest.fixture(scope="session")
def compared(ray_session: None, arguments: list[str]) -> CompareOutcome:
    return compare_methods(load_comparison(arguments))


@pytest.fixture
def runs(compared: CompareOutcome) -> Path:
    return compared.report.parent / "runs"


def markers(runs: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in runs.rglob("_SUCCESS.json")}


def test_a_method_that_cannot_run_ends_no_other(compared: CompareOutcome) -> None:
    assert {run.name: run.status for run in compared.data.runs} == {
        **{f"{method}-{seed}": "finished" for method in ("bigrec", "sprec", "popularity") for seed in (0, 1)},
        **{f"greedy_for_negatives-{seed}": "failed" for seed in (0, 1)},
    }
    assert compared.num_failed == 2
    errors = {run.error for run in compared.data.runs_of("greedy_for_negatives")}
    assert len(errors) == 1
    assert "selfplay.num_negatives=100 exceeds the 59 titles" in errors.pop()


def test_what_methods_have_in_common_is_made_once_per_seed(compared: CompareOutcome, runs: Path) -> None:
    for seed in (0, 1):
        assert origin(runs / f"bigrec-{seed}" / "sft") is None
        for stage in ("sft", "evaluations/sft", "evaluations/base"):
            assert origin(runs / f"sprec-{seed}" / stage) == runs / f"bigrec-{seed}"
        assert origin(runs / f"sprec-{seed}" / "iteration-0" / "preference") is None
    made = [run.name for run in compared.data.runs if "data" not in run.shared and run.status == "finished"]
    assert made == ["bigrec-0"]


def test_the_table_holds_the_numbers_of_the_runs(compared: CompareOutcome, runs: Path) -> None:
    last = {"bigrec": "sft", "sprec": "iteration-0", "popularity": "collaborative"}
    for method, label in last.items():
        found = [
            next(
                result
                for result in read_json(runs / f"{method}-{seed}" / "results.json")["results"]
                if result["label"] == label
            )
            for seed in (0, 1)
        ]
        for column in table_columns(compared.data):
            ours = compared.data.values(method, column.key)
            assert ours == [result["metrics"][column.key] for result in found]
    mean = statistics.fmean(compared.data.values("sprec", "hr@5"))
    assert f"{mean:.4f}" in (compared.report.parent / "compare.md").read_text()
    assert (runs / "sprec-0" / "report.html").is_file()


def test_differences_are_those_of_the_table(compared: CompareOutcome) -> None:
    tested = {(found.method, found.rival, found.metric): found for found in compared.data.significance}
    for key in ("hr@5", "div_ratio@1"):
        means = [statistics.fmean(compared.data.values(method, key)) for method in ("sprec", "bigrec")]
        assert tested["sprec", "bigrec", key].difference == pytest.approx(means[0] - means[1])


def test_a_run_alone_costs_what_was_shared_too(compared: CompareOutcome) -> None:
    [sprec, _] = compared.data.runs_of("sprec")
    [bigrec, _] = compared.data.runs_of("bigrec")
    assert sprec.alone is not None
    assert bigrec.alone is not None
    assert sprec.alone.cpu_s > sprec.spent.cpu_s
    assert sprec.alone.trained_tokens > bigrec.alone.trained_tokens > 0
    assert sprec.alone.decoded_tokens > bigrec.alone.decoded_tokens > 0
    assert bigrec.alone.trained_tokens == bigrec.spent.trained_tokens


def test_a_run_of_the_comparison_is_the_run_alone(
    compared: CompareOutcome, runs: Path, train: Train, tiny: Make
) -> None:
    alone = train(tiny("alone-compared", "preference.reference=pre_sft", "seed=1")).report.parent
    for stage in ("sft", "iteration-0/preference"):
        file = Path(stage) / "adapter_model.safetensors"
        assert (alone / file).read_bytes() == (runs / "sprec-1" / file).read_bytes()


def test_the_same_command_tries_what_failed_again_and_nothing_else(
    compared: CompareOutcome, runs: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = markers(runs)
    with pytest.raises(SystemExit) as left:
        compare.main(arguments)
    assert left.value.code == 1
    assert "2 of 8 runs failed" in capsys.readouterr().err
    assert markers(runs) == before


def test_without_anything_left_nothing_is_done(compared: CompareOutcome, runs: Path, arguments: list[str]) -> None:
    before = markers(runs)
    able = [*arguments[:1], "methods=[bigrec,sprec,popularity]", *arguments[2:]]
    outcome = compare_methods(load_comparison(able))
    assert outcome.num_failed == 0
    assert markers(runs) == before
    assert read_comparison(compared.report.parent).methods == outcome.data.methods


def test_a_deleted_run_is_made_again(compared: CompareOutcome, runs: Path, arguments: list[str]) -> None:
    shutil.rmtree(runs / "sprec-1")
    weights = runs / "sprec-1" / "iteration-0" / "preference" / "adapter_model.safetensors"
    outcome = compare_methods(load_comparison([*arguments[:1], "methods=[bigrec,sprec]", *arguments[2:]]))
    assert outcome.num_failed == 0
    assert weights.is_file()
    assert outcome.data.values("sprec", "hr@5") == compared.data.values("sprec", "hr@5")


def test_a_comparison_is_continued_only_with_its_settings(compared: CompareOutcome, arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"was made with sft.num_epochs=1, not 2; choose another name="):
        compare_methods(load_comparison([*arguments, "sft.num_epochs=2"]))


def test_a_run_is_no_comparison(compared: CompareOutcome, arguments: list[str], runs: Path) -> None:
    shutil.copytree(runs / "bigrec-0", runs.parent.parent / "a-run", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ConfigError, match=r"a-run is a run, not a comparison; choose another name="):
        compare_methods(load_comparison([*arguments, "name=a-run"]))
