"""What a comparison's arguments mean: methods over a dataset's file, seeds, studies, and mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sprec_ray.config.compare import (
    chosen_methods,
    dataset_config,
    known_methods,
    load_comparison,
    planned_runs,
    run_command,
)
from sprec_ray.config.load import config_to_dict, load_config
from sprec_ray.config.run import ConfigError
from sprec_ray.reports.compare.notes import comparison_notes

ROOT = Path(__file__).parents[2]
METHODS = {
    "bigrec": "selfplay: {num_iterations: 0}",
    "sprec": "preference: {loss: dpo, reference: pre_sft}\nselfplay: {negatives: beam}",
    "reference/sprec": "preference: {reference: post_sft}\nselfplay: {negatives: greedy}",
    "sprec_n": "preference: {loss: softmax_dpo}\nselfplay: {num_negatives: 4}",
    "sprec_random_ratio": "selfplay: {random_ratio: 0.5}",
}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset's file with a folder of methods beside it."""
    for name, text in METHODS.items():
        file = tmp_path / "methods" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\ndata: {source: demo}\nselfplay: {num_iterations: 3, num_examples: 2048}\n")
    return file


def test_a_run_is_the_dataset_then_what_is_set_for_all_then_the_method_then_the_seed(dataset: Path) -> None:
    comparison = load_comparison([str(dataset), "methods=[bigrec,sprec]", "seeds=[0,4]", "selfplay.num_iterations=2"])
    runs = planned_runs(comparison)
    assert [run.name for run in runs] == ["bigrec-0", "bigrec-4", "sprec-0", "sprec-4"]
    assert [run.config.selfplay.num_iterations for run in runs] == [0, 0, 2, 2]
    assert [run.config.seed for run in runs] == [0, 4, 0, 4]
    assert runs[2].config.preference.reference == "pre_sft"
    assert {run.config.output_dir for run in runs} == {"runs/compare-mine/runs"}
    assert all(run.config.share_stages for run in runs)
    assert [run.parameters for run in runs][3] == {"method": "sprec", "seed": 4}


def test_what_a_method_is_made_of_is_kept_and_said(dataset: Path) -> None:
    comparison = load_comparison([str(dataset), "methods=bigrec,sprec", "seeds=0", "selfplay.num_iterations=2"])
    assert comparison_notes(comparison) == [
        "selfplay.num_iterations=2 leaves these as their files make them: bigrec (0); "
        "METHOD.selfplay.num_iterations=2 sets it for one"
    ]
    own = load_comparison([str(dataset), "methods=[bigrec,sprec]", "seeds=[0]", "sprec.preference.reference=base"])
    assert [run.config.preference.reference for run in planned_runs(own)] == ["post_sft", "base"]


def test_the_published_variant_is_asked_for_all_or_for_one(dataset: Path) -> None:
    arguments = [str(dataset), "seeds=0"]
    both = load_comparison([*arguments, "methods=[sprec,sprec:reference]"])
    assert [run.name for run in planned_runs(both)] == ["sprec-0", "sprec-reference-0"]
    assert [run.config.selfplay.negatives for run in planned_runs(both)] == ["beam", "greedy"]
    every = load_comparison([*arguments, "methods=[bigrec,sprec]", "variant=reference"])
    assert [(method.label, method.variant) for method in chosen_methods(every)] == [
        ("bigrec", "paper"),
        ("sprec", "reference"),
    ]


def test_studies_add_runs_over_a_range_with_fewer_examples(dataset: Path) -> None:
    arguments = [str(dataset), "methods=[sprec]", "seeds=[0]", "studies=[random_ratio,num_negatives]"]
    runs = planned_runs(load_comparison(arguments))
    ratios = ["0", "0.25", "0.5", "0.75", "1"]
    assert [run.name for run in runs[1:6]] == [f"sprec_random_ratio-random_ratio-{ratio}-0" for ratio in ratios]
    assert [run.config.selfplay.random_ratio for run in runs[1:6]] == [0, 0.25, 0.5, 0.75, 1]
    assert [run.config.selfplay.num_negatives for run in runs[6:]] == [1, 2, 4, 8]
    assert [run.config.selfplay.num_examples for run in runs] == [2048] + 9 * [1024]
    given = planned_runs(load_comparison([*arguments, "selfplay.num_examples=512"]))
    assert {run.config.selfplay.num_examples for run in given} == {512}


def test_studies_have_settings_of_their_own(dataset: Path) -> None:
    arguments = [str(dataset), "methods=[sprec]", "seeds=[0]", "studies=[random_ratio,num_negatives]"]
    arguments += ["sprec.sft.num_epochs=2", "sprec_n.sft.num_epochs=2", "sprec.selfplay.num_examples=1024"]
    arguments += ["sprec.selfplay.random_ratio=0.5"]  # that study has its own values, the other one has none
    comparison = load_comparison(arguments)
    assert [run.config.sft.num_epochs for run in planned_runs(comparison)] == [2, *5 * [4], *4 * [2]]
    assert comparison_notes(comparison) == [
        "sprec.sft.num_epochs=2 is not the studies' setting; sprec_random_ratio.sft.num_epochs=2 makes it theirs",
        "sprec.selfplay.random_ratio=0.5 is not the studies' setting; sprec_n.selfplay.random_ratio=0.5 makes it "
        "theirs",
    ]


def test_methods_that_the_measured_rows_chose_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    arguments = ["configs/ml-100k.yaml", "data.path=x", "methods=[bigrec,d3,sprec,sasrec,popularity]", "seeds=[0]"]
    assert comparison_notes(load_comparison(arguments)) == []
    assert comparison_notes(load_comparison([*arguments, "split=valid"])) == [
        "split=valid: d3, sasrec chose an epoch or a weight by these rows, which flatters them; compare them with "
        "others by split=test"
    ]


def test_d3_is_d3_whatever_grounds_the_other_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grounded by distance its second opinion would weigh distances: BIGRec's adjustment under D3's name."""
    monkeypatch.chdir(ROOT)
    for more in (["configs/presets/paper.yaml"], ["configs/presets/reference.yaml"], ["evaluation.grounding=policy"]):
        arguments = ["configs/goodreads.yaml", *more, "data.path=x", "methods=[bigrec,d3]", "seeds=[0]"]
        bigrec, d3 = (run.config.evaluation for run in planned_runs(load_comparison(arguments)))
        assert (bigrec.grounding != "search", d3.grounding, d3.adjustment) == (True, "search", "collaborative")


def test_the_command_of_a_run_repeats_it_alone(dataset: Path) -> None:
    comparison = load_comparison([str(dataset), "methods=[sprec:reference]", "seeds=[3]", "sft.num_epochs=1"])
    [method], [run] = chosen_methods(comparison), planned_runs(comparison)
    words = run_command(comparison, method, run).split()
    assert words[:3] == ["python", "-m", "jobs.train_selfplay"]
    alone, ours = (config_to_dict(config) for config in (load_config(words[3:]), run.config))
    assert alone.pop("name") == "compare-mine_sprec-reference-3"
    for key in ("name", "output_dir", "share_stages"):
        alone.pop(key, None)
        ours.pop(key)
    assert alone == ours


def test_the_dataset_is_what_methods_are_laid_over(dataset: Path) -> None:
    comparison = load_comparison([str(dataset), "methods=[bigrec]", "seeds=0", "sft.num_epochs=7"])
    assert dataset_config(comparison).selfplay.num_iterations == 3
    assert dataset_config(comparison).sft.num_epochs == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["methods=[sprek]"], r"there is no method sprek .*; did you mean sprec\?"),
        (["methods=[xyz]"], r"no method xyz .*; known: bigrec, sprec, sprec_n, sprec_random_ratio"),
        (["methods=[bigrec:reference]"], r"bigrec has no reference variant"),
        (["methods=[sprec:mine]"], r"the variants are sprec:paper and sprec:reference"),
        (["methods=[sprec,sprec]"], r"names one twice"),
        ([], r"name the methods to compare.*known: bigrec, sprec"),
        (["methods=[sprec]", "seed=1"], r"seed=1: a comparison has several; write seeds=\[1\]"),
        (["methods=[sprec]", "share_stages=false"], r"share_stages=false: the runs of a comparison share stages"),
        (["methods=[sprec]", "sprec.seed=1"], r"sprec.seed=1: a comparison has several; write seeds=\[1\]"),
        (["methods=[sprec]", "sprec.name=a"], r"sprec.name=a: the comparison names and places its runs"),
        (["methods=[sprec]", "sprec.recommender=collaborative"], r"it is the method's to say what recommends"),
        (["methods=[sprec]", "recommender=collaborative"], r"it is the method's to say what recommends; name methods"),
        (["methods=[sprec]", "seeds=[]"], r"seeds=\(\)|seeds"),
        (["methods=[sprec]", "studies=[beta]"], r"studies.0='beta': input should be 'random_ratio'"),
        (["methods=[sprec]", "sft.epochs=1"], r"sft.epochs: unknown key"),
        (["methods=[sprec]", "sprek.sft.num_epochs=1"], r"sprek.sft.num_epochs: did you mean sprec.sft.num_epochs\?"),
        (["methods=[sprec]", "selfplay.num_negatives=2"], r"method sprec: selfplay.num_negatives=2 needs"),
        (["methods=[sprec]", "output_dir=s3://bucket"], r"runs share files by links; give a folder"),
        (["methods=[sprec]", "num_resamples=10"], r"num_resamples=10: input should be greater than or equal to 100"),
        (["methods=[sprec]", "name=a/b"], r"must be a folder name"),
    ],
)
def test_a_mistake_is_one_sentence(dataset: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        load_comparison([str(dataset), *arguments])
    assert "\n" not in str(raised.value)


def test_every_shipped_method_fits_every_shipped_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for file in ("configs/goodreads.yaml", "configs/ml-100k.yaml"):
        methods = [name for name in known_methods(file) if name != "tallrec"]  # it answers Yes. or No. to pairs
        assert {"bigrec", "sprec", "sasrec", "popularity"} <= set(methods)
        arguments = [file, f"methods=[{','.join(methods)}]", "data.path=x", "studies=[random_ratio,num_negatives]"]
        assert len(planned_runs(load_comparison([*arguments, "seeds=[0]"]))) == len(methods) + 9
