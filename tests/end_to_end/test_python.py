"""What a notebook calls: a run read back, and its catalogue searched with each of its adapters."""

import dataclasses
import itertools
from pathlib import Path

import pytest

import sprec_ray
from sprec_ray.cluster.runs.run import RunOutcome
from sprec_ray.storage.artifacts import read_json, read_rows
from sprec_ray.types import Example

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(undisturbed: RunOutcome) -> sprec_ray.RunResults:
    return sprec_ray.read_run(undisturbed.report.parent)


def test_a_run_is_read_back(run: sprec_ray.RunResults, undisturbed: RunOutcome) -> None:
    assert run.results == undisturbed.results
    assert list(run.adapters) == ["sft", "iteration-0"]
    assert run.metric("ndcg@5")["iteration-0"] == undisturbed.results[2].metrics["ndcg@5"]
    assert len(run.titles) == 60
    assert run.config.name == "undisturbed"


@pytest.mark.parametrize("policy", ["base", "sft", "iteration-0"])
def test_a_search_gives_what_the_run_recommended(run: sprec_ray.RunResults, policy: str) -> None:
    rows = read_rows(run.folder / "data" / "test.jsonl", Example)
    answers = run.search([row.history for row in rows], policy=policy, k=5)
    recommended = read_json(run.folder / "evaluations" / policy / "grounded.json")
    assert [[answer.title for answer in row] for row in answers] == recommended
    assert all(one.logp >= other.logp for row in answers for one, other in itertools.pairwise(row))


def test_a_run_that_has_only_its_data_has_no_policy(run: sprec_ray.RunResults, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes((run.folder / "config.yaml").read_bytes())
    (tmp_path / "data").symlink_to(run.folder / "data")
    early = sprec_ray.read_run(tmp_path)
    assert early.results == ()
    assert early.titles == run.titles
    with pytest.raises(ValueError, match=r"has no policy 'sft'; it has: none, or none yet$"):
        early.search([["Dune"]], policy="sft")


def test_mistakes_are_named(run: sprec_ray.RunResults, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no run with data; name the folder that a run printed"):
        sprec_ray.read_run(tmp_path)
    with pytest.raises(ValueError, match=r"has no policy 'iteration-7'; it has: base, sft, iteration-0$"):
        run.search([run.titles[:3]], policy="iteration-7")
    with pytest.raises(ValueError, match=r"k=61 must be between 1 and the 60 titles of the catalogue"):
        run.search([run.titles[:3]], k=61)
    with pytest.raises(ValueError, match=r"a history has no titles"):
        run.search([[]])
    with pytest.raises(ValueError, match=r"histories is a list of lists of titles"):
        run.search(["Dune"])
    pairs = dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, task="candidates"))
    with pytest.raises(ValueError, match=r"data.task=candidates asks about titles that the prompt names"):
        sprec_ray.search_catalog([["Dune"]], ["Dune"], config=pairs, model=run.model, k=1)
    with pytest.raises(ValueError, match=r"the small Llama of .* is not at gone any more"):
        dataclasses.replace(run, model="gone").search([["Dune"]])
    with pytest.raises(sprec_ray.ConfigError, match=r"model.name_or_path=scratch is no model on disk"):
        sprec_ray.search_catalog([["Dune"]], ["Dune"], config=run.config, k=1)
