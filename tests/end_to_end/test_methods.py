"""Methods as overlays of one configuration, on real engines: what they share is trained once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from sprec_ray.cluster.runs.run import RunOutcome, export_scores, run_folder
from sprec_ray.cluster.stages.run_data import RunData
from sprec_ray.cluster.stages.sharing import origin
from sprec_ray.config.load import load_config
from sprec_ray.config.run import RunConfig
from sprec_ray.storage.artifacts import Stage, read_json, read_rows
from sprec_ray.types import Example, PreferenceGroup
from tests.fixture_types import Train

pytestmark = pytest.mark.slow
METHODS = Path(__file__).parents[2] / "configs" / "methods"
Method = Callable[..., tuple[RunConfig, RunOutcome]]


@pytest.fixture(scope="module")
def method(train: Train, tiny_file: Path, output_dir: Path) -> Method:
    def run(name: str, *overrides: str) -> tuple[RunConfig, RunOutcome]:
        own = [
            f"output_dir={output_dir}",
            f"name=method-{name}-{crc32(' '.join(overrides).encode())}",
            "share_stages=true",
            "seed=7",  # so that A_0 is not that of the comparison's tests, which share this folder
        ]
        config = load_config([str(tiny_file), str(METHODS / f"{name}.yaml"), "evaluation.base=false", *own, *overrides])
        return config, train(config)

    return run


def test_genre_weights_train_another_first_policy(method: Method) -> None:
    """RW weighs rows of A_0; its loss differs from BIGRec's, whose A_0 every other method takes."""
    folders = [run_folder(method(name)[0]) for name in ("bigrec", "rw", "dpo")]
    weights = {row.weight for row in read_rows(folders[1] / "sft" / "rows.jsonl", PreferenceGroup)}
    assert len(weights) > 1
    losses = [read_json(folder / "sft" / "steps.json")[0]["loss"] for folder in folders]
    assert losses[0] == losses[2] != losses[1]
    assert origin(folders[1] / "sft") is None
    assert origin(folders[2] / "sft") == folders[0]


def test_a_run_that_takes_every_stage_from_others_is_whole(method: Method) -> None:
    """Nothing is computed, and what jobs.score_predictions reads is there all the same."""
    made, taken = (run_folder(method("bigrec", *change)[0]) for change in ((), ("selfplay.num_examples=9",)))
    assert origin(taken / "evaluations" / "sft") == made
    for name in ("id2name.json", "name2genre.json", "genre_dict.json", "popularity.json"):
        file = Path("evaluations", "catalog", name)
        assert (taken / file).read_bytes() == (made / file).read_bytes()


def test_d3_chooses_its_weight_on_the_validation_rows(method: Method) -> None:
    """With gamma 0 its answers are those of the plain beam search; A_0 is not trained again."""
    config, outcome = method("d3")
    summary = Stage(run_folder(config) / "evaluations" / "sft").summary
    tried = {float(gamma): value for gamma, value in summary["ndcg@5"].items()}
    assert summary["gamma"] in tried
    assert tried[summary["gamma"]] == max(tried.values())
    (policy, *_) = outcome.results
    plain = method("d3", "evaluation.adjustment=none", "evaluation.gamma=1")[1].results[0]
    fixed = method("d3", "evaluation.gamma=0", "collaborative.num_epochs=1")[1].results[0]
    assert fixed.metrics == plain.metrics
    assert policy.metrics["valid"] == 1.0
    config, _ = method("d3", "evaluation.gamma=10000", "evaluation.adjustment=popularity", "decoding.search=exact")
    data = RunData(run_folder(config) / "data", "test")
    most = sorted((data.popularity[title] for title in data.catalog.titles), reverse=True)[:5]
    ranked = read_json(run_folder(config) / "evaluations" / "sft" / "grounded.json")
    assert [[data.popularity[title] for title in row] for row in ranked] == [most] * len(ranked)


def test_rosepo_smooths_similar_titles(method: Method) -> None:
    config, _ = method("rosepo")
    groups = read_rows(run_folder(config) / "iteration-0" / "groups" / "groups.jsonl", PreferenceGroup)
    assert len(groups) == 48, "all training examples"
    assert all(len(group.rejected) == 1 and group.rejected[0] != group.chosen for group in groups)
    smoothing = [group.smoothing for group in groups]
    assert all(eps is not None and 0 <= eps < 0.5 for eps in smoothing)
    assert len(set(smoothing)) > 1


def test_a_collaborative_model_is_a_run_of_its_own(method: Method) -> None:
    config, outcome = method("sasrec")
    assert [result.label for result in outcome.results] == ["collaborative", "popularity", "last_item", "random"]
    assert not (run_folder(config) / "sft").exists()
    assert outcome.report.is_file()
    assert method("sasrec")[1].was_finished
    scores, rows = export_scores(config), read_rows(run_folder(config) / "data" / "test.jsonl", Example)
    titles = read_json(scores / "titles.json")
    best = np.load(scores / "test.npy").argmax(axis=1)
    ranked = read_json(run_folder(config) / "evaluations" / "collaborative" / "grounded.json")
    assert len(best) == len(rows)
    assert [titles[place] for place in best] == [row[0] for row in ranked]
    same = method("popularity")[1].results
    assert same[0].metrics == pytest.approx(same[1].metrics, nan_ok=True), "two ways to one baseline"
