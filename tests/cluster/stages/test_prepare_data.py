import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from sprec_ray.cluster.runs.run import prepare_run
from sprec_ray.cluster.stages.prepare_data import prepare_data
from sprec_ray.config.data import DataConfig, DemoDataConfig
from sprec_ray.config.run import RunConfig
from sprec_ray.data.catalog import Catalog
from sprec_ray.storage.artifacts import Stage, read_rows
from sprec_ray.types import Example

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

SMALL = DataConfig(demo=DemoDataConfig(num_items=60, num_users=40), num_train=200, num_valid=30, num_test=40)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def movielens(raw: Path, **changes: Any) -> DataConfig:
    values = {"min_interactions": 4, "min_history": 1, "split": (0.4, 0.3, 0.3)} | changes
    return DataConfig(source="movielens", path=str(raw / "ml100k"), **values)


def test_the_files_are_the_same_with_ray_data_and_without_whatever_the_number_of_blocks(tmp_path: Path) -> None:
    for blocks in (None, 1, 7):
        prepare_data(SMALL, out=tmp_path / str(blocks), num_blocks=blocks)
    assert digests(tmp_path / "None") == digests(tmp_path / "1") == digests(tmp_path / "7")
    assert list(digests(tmp_path / "1")) == ["catalog.json", "counts.json", "test.jsonl", "train.jsonl", "valid.jsonl"]


def test_the_counts_are_those_of_the_files(tmp_path: Path) -> None:
    counts = prepare_data(SMALL, out=tmp_path)
    assert {name: counts[name] for name in ("train", "valid", "test", "catalog")} == {
        "train": 200,
        "valid": 30,
        "test": 40,
        "catalog": len(Catalog.read(tmp_path / "catalog.json")),
    }
    assert json.loads((tmp_path / "counts.json").read_text()) == counts
    for split in ("train", "valid", "test"):
        assert len(read_rows(tmp_path / f"{split}.jsonl", Example)) == counts[split]


def test_another_seed_samples_other_examples_of_the_same_splits(tmp_path: Path) -> None:
    counts = [prepare_data(dataclasses.replace(SMALL, seed=seed), out=tmp_path / str(seed)) for seed in (0, 1)]
    assert counts[0] == counts[1]
    assert digests(tmp_path / "0")["train.jsonl"] != digests(tmp_path / "1")["train.jsonl"]


def test_no_target_of_train_is_as_late_as_one_of_test(tmp_path: Path) -> None:
    prepare_data(SMALL, out=tmp_path)
    train, test = (read_rows(tmp_path / f"{name}.jsonl", Example) for name in ("train", "test"))
    assert max(row.timestamp for row in train) < min(row.timestamp for row in test)


def test_windows_of_raw_ratings_are_those_made_by_hand(raw: Path, tmp_path: Path) -> None:
    """User 1: items 2, 4 and 1 tie at 100 and keep their rows' order, then 6 at 200 and 9 at 300.

    User 2 has one rating of an item that is not in u.item, which leaves 3, fewer than 4. Four windows with target times
    100, 100, 200, 300; cuts at round(1.6) = 2 and round(2.8) = 3.
    """
    counts = prepare_data(movielens(raw), out=tmp_path)
    rows = [row for name in ("train", "valid", "test") for row in read_rows(tmp_path / f"{name}.jsonl", Example)]
    by_id = {row.example_id: (row.history, row.target) for row in rows}
    lantern, misere, robot = "Lantern, The (1996)", "Misère, La (1994)", "Robot Holiday (1995)"
    assert by_id == {
        "1:1": ((lantern,), misere),
        "1:2": ((lantern, misere), robot),
        "1:3": ((lantern, misere, robot), lantern),  # item 6 has the title of item 2
        "1:4": ((lantern, misere, robot, lantern), "Cellar Door (1997) (V)"),
    }
    assert [counts[name] for name in ("train", "valid", "test")] == [2, 1, 1]
    assert counts["dropped/item_without_title"] == 1
    assert counts["dropped/users_below_min_interactions"] == 1
    assert counts["dropped/interactions_of_these_users"] == 3
    assert counts["missing/test"] == 999
    assert counts["catalog"] == 5


def test_ready_made_splits_are_sampled_as_they_are(raw: Path, tmp_path: Path) -> None:
    config = DataConfig(source="sprec", path=str(raw / "sprec"), num_train=5)
    counts = prepare_data(config, out=tmp_path)
    assert (counts["train"], counts["available/train"], counts["valid"], counts["test"]) == (5, 9, 1, 3)
    assert counts["test_target_not_in_catalog"] == 1
    assert counts["dropped/target_unparsed"] == 1
    assert counts["noted/target_not_in_catalog"] == 1


def test_users_that_are_all_too_short_are_refused(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no user has 100 interactions with a known title; lower data\.min_inter"):
        prepare_data(movielens(raw, min_interactions=100), out=tmp_path)


def test_a_run_continues_from_the_data_that_was_made_to_look_at(tmp_path: Path) -> None:
    config = RunConfig(name="look", output_dir=str(tmp_path), data=SMALL)
    folder, counts = prepare_run(config)
    assert Stage(folder).is_finished
    before = digests(folder)
    assert prepare_run(config) == (folder, counts)
    assert digests(folder) == before


def test_rows_to_choose_from_have_candidates_that_do_not_depend_on_the_sample(tmp_path: Path) -> None:
    config = DataConfig(task="candidates", num_train=30, demo=DemoDataConfig(num_items=60, num_users=20))
    prepare_data(config, out=tmp_path / "all")
    prepare_data(dataclasses.replace(config, num_train=2), out=tmp_path / "two")
    whole, part = (read_rows(tmp_path / name / "train.jsonl", Example) for name in ("all", "two"))
    assert part == whole[:2]
    assert all(row.target in row.candidates and len(row.candidates) == 20 for row in whole)


def test_a_catalogue_with_fewer_titles_than_candidates_is_refused(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot give 2000 candidates; lower data.num_candidates"):
        prepare_data(movielens(raw, task="candidates", num_candidates=2000, min_history=1), out=tmp_path)
