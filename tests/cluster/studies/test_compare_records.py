"""What runs on disk say of methods and costs, without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sprec_ray.cluster.stages.sharing import ORIGIN
from sprec_ray.cluster.studies.compare_records import (
    adopted_costs,
    method_record,
    pretraining_cost,
    run_costs,
    run_is_done,
)
from sprec_ray.cluster.studies.comparing import shown_published
from sprec_ray.config.compare import chosen_methods, load_comparison
from sprec_ray.config.load import load_config
from sprec_ray.config.run import RunConfig
from sprec_ray.reports.compare.results import Cost
from sprec_ray.storage.artifacts import Stage, write_json
from sprec_ray.storage.timeline import TIMELINE


def spans(folder: Path, *found: tuple[str, str, float]) -> None:
    """A timeline of (name, kind, seconds), one span after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    start, lines = 1000.0, []
    for name, kind, duration in found:
        lines.append(json.dumps({"name": name, "kind": kind, "start": start, "duration": duration}) + "\n")
        start += duration
    (folder / TIMELINE).write_text("".join(lines))


@pytest.fixture
def config() -> RunConfig:
    """Two workers of two CPUs each and three decoders of one."""
    return load_config(["training.num_workers=2", "training.cpus_per_worker=2", "decoding.num_decoders=3"])


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """``first`` has made A_0 and its evaluation, which ``second`` took, and has gone on by itself."""
    first, second = tmp_path / "first", tmp_path / "second"
    spans(
        first,
        ("ray", "launch", 5.0),
        ("data", "load", 1.0),
        ("pre-training", "compute", 20.0),
        ("sft", "load", 1.0),
        ("sft", "compute", 10.0),
        ("sft: test rows", "decode", 4.0),
        ("sft: grounding", "evaluate", 2.0),
    )
    spans(second, ("ray", "launch", 5.0), ("iteration 0: dpo", "compute", 7.0))
    sft = {"num_trained_tokens": 1000}
    measured = {"result": {"counts": {"num_answer_tokens": 30}}}
    for run in (first, second):
        for stage, summary in (("data", {}), ("sft", sft), ("evaluations/sft", measured)):
            made = Stage(run / stage).start()
            if run == second:
                write_json(made.path / ORIGIN, {"run": "first", "folder": str(first)})
            made.finish(summary)
    Stage(second / "iteration-0" / "preference").start().finish({"num_trained_tokens": 500})
    return tmp_path


def test_a_stage_costs_its_seconds_times_what_its_side_reserves(runs: Path, config: RunConfig) -> None:
    """Data 1 s x 1; training and grounding 13 s x 4 CPUs; decoding 4 s x 3 CPUs: 65. No launch."""
    spent, alone, shared = run_costs(config, runs / "first")
    assert spent == Cost(cpu_s=1 + 13 * 4 + 4 * 3, trained_tokens=1000, decoded_tokens=30)
    assert (alone, shared) == (spent, {})
    assert pretraining_cost(config, runs / "first") == Cost(cpu_s=80.0)


def test_a_run_alone_costs_what_it_took_from_others_too(runs: Path, config: RunConfig) -> None:
    spent, alone, shared = run_costs(config, runs / "second")
    assert spent == Cost(cpu_s=28.0, trained_tokens=500)
    assert alone == Cost(cpu_s=28.0 + 65.0, trained_tokens=1500, decoded_tokens=30)
    assert adopted_costs(config, runs / "second")[runs / "first", "sft"] == Cost(cpu_s=44.0, trained_tokens=1000)
    assert shared == {"data": "first", "sft": "first", "evaluations/sft": "first"}


def test_the_cost_alone_is_unknown_once_the_maker_is_gone(runs: Path, config: RunConfig) -> None:
    (runs / "first" / TIMELINE).unlink()
    spent, alone, _ = run_costs(config, runs / "second")
    assert spent.cpu_s == 28.0
    assert alone is None


def test_gpus_count_where_they_are_reserved(runs: Path) -> None:
    config = load_config(["training.num_workers=2", "training.gpus_per_worker=1", "decoding.gpus_per_decoder=0.5"])
    assert run_costs(config, runs / "first")[0].gpu_s == 13 * 2 + 4 * 0.5


def test_a_damaged_run_is_not_done(runs: Path, config: RunConfig) -> None:
    (runs / "first" / "results.json").write_text("{")
    (runs / "first" / "report.html").write_text("")
    assert not run_is_done(config, runs / "first", "test")
    assert not run_is_done(config, runs / "first", "valid")


def test_a_run_measured_with_fewer_iterations_is_not_done(tmp_path: Path) -> None:
    measured = {"label": "iteration-0", "metrics": {}, "counts": {}}
    write_json(tmp_path / "results-valid.json", {"results": [measured]})
    for num_iterations, done in ((0, True), (1, True), (2, False)):
        config = load_config([f"selfplay.num_iterations={num_iterations}"])
        assert run_is_done(config, tmp_path, "valid") is done


def test_a_method_is_described_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "methods" / "reference").mkdir(parents=True)
    (tmp_path / "methods" / "sprec.yaml").write_text(
        "# SPRec: in turns SFT\n# and DPO.\npreference: {reference: pre_sft}\n# not this\n"
    )
    (tmp_path / "methods" / "reference" / "sprec.yaml").write_text("selfplay: {negatives: greedy}")
    (tmp_path / "methods" / "last.yaml").write_text("recommender: collaborative\ncollaborative: {model: last_item}")
    (tmp_path / "mine.yaml").write_text("selfplay: {num_iterations: 2}")
    comparison = load_comparison([str(tmp_path / "mine.yaml"), "methods=[sprec,last]", "seeds=[1]"])
    sprec, last = (method_record(comparison, method) for method in chosen_methods(comparison))
    assert sprec.about == "SPRec: in turns SFT and DPO."
    assert sprec.settings == {"preference.reference": ("post_sft", "pre_sft")}
    assert sprec.variant_settings == {"selfplay.negatives": ("beam", "greedy")}
    assert (sprec.kind, last.kind) == ("language model", "simple")
    assert last.variant_settings == {}


def test_a_collaborative_model_takes_no_gpu(tmp_path: Path) -> None:
    """It is trained in the driver, before the workers that hold GPUs are launched."""
    spans(tmp_path, ("sasrec", "compute", 60.0))
    config = load_config(["training.num_workers=4", "training.gpus_per_worker=1", "decoding.gpus_per_decoder=1"])
    assert run_costs(config, tmp_path)[0] == Cost(cpu_s=60.0)


def test_the_seconds_of_a_swap_and_of_a_launch_are_not_counted_with_those_of_decoding(
    tmp_path: Path, config: RunConfig
) -> None:
    """As runs write them: 20 s of decoding hold 15 s of waiting for the engines and 1 s of a swap. 5 s x 3 CPUs."""
    rows = [
        ("decoders", "launch", 1000.0, 15.0),
        ("sft: test rows: swap", "load", 1015.0, 1.0),
        ("sft: test rows", "decode", 999.0, 20.0),
    ]
    keys = ("name", "kind", "start", "duration")
    (tmp_path / TIMELINE).write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows))
    assert run_costs(config, tmp_path)[0].cpu_s == pytest.approx(15.0)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["configs/goodreads.yaml"], "goodreads"),
        (["configs/goodreads.yaml", "data.task=candidates"], None),
        (["configs/ml-100k.yaml"], None),
        (["configs/ml-100k.yaml", "published=movielens"], "movielens"),
        (["configs/dmpo-ml-1m.yaml"], "dmpo-ml-1m"),
        (["configs/dmpo-ml-1m.yaml", "published=none"], None),
        (["configs/dmpo-ml-1m.yaml", "configs/dmpo-movielens-to-amazon.yaml"], None),
        (["configs/dmpo-ml-1m.yaml", "data.domain=rec_Amazon_Movie"], None),
        (["configs/dmpo-amazon-movie.yaml", "data.test_path=elsewhere"], None),
    ],
)
def test_published_numbers_are_shown_beside_the_same_rows_only(arguments: list[str], wanted: str | None) -> None:
    assert shown_published(load_comparison([*arguments, "methods=[bigrec]", "data.path=x"])) == wanted
