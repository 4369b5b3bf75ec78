from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sprec_ray.cluster.stages.prepare_data import prepare_data
from sprec_ray.config.data import DataConfig
from sprec_ray.data.catalog import Catalog
from sprec_ray.storage.artifacts import read_rows
from sprec_ray.types import PairExample

SPLITS = ("train", "valid", "test")


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    """Twelve users, who like even films; the last one has too few ratings."""
    folder = tmp_path / "ml"
    folder.mkdir()
    (folder / "movies.dat").write_text("".join(f"{item}::Film {item} (1990)::Drama\n" for item in range(10)))
    lines = [
        f"{user}::{item}::{5 - 3 * (item % 2)}::{100 + item}\n"
        for user in range(12)
        for item in range(10 if user < 11 else 3)
    ]
    (folder / "ratings.dat").write_text("".join(lines))
    return folder


def config(path: Path) -> DataConfig:
    return DataConfig(
        source="movielens", task="pairs", path=str(path), min_judged=2, num_train=5, num_valid=2, num_test=4
    )


def rows(out: Path) -> dict[str, list[PairExample]]:
    return {split: read_rows(out / f"{split}.jsonl", PairExample) for split in SPLITS}


def test_users_become_pairs_in_disjoint_splits(ratings: Path, tmp_path: Path) -> None:
    counts = prepare_data(config(ratings), out=tmp_path / "data")
    found = rows(tmp_path / "data")
    assert [len(found[split]) for split in SPLITS] == [5, 2, 4]
    users = [row.example_id for split in SPLITS for row in found[split]]
    assert len(set(users)) == 11
    assert all(row.liked == "Film 8 (1990)" for row in found["test"])
    assert counts["dropped/users_below_min_judged"] == 1
    assert len(Catalog.read(tmp_path / "data" / "catalog.json")) == counts["catalog"] == 10


def test_the_same_settings_give_the_same_files(ratings: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        prepare_data(config(ratings), out=tmp_path / name)
    for file in ("train.jsonl", "valid.jsonl", "test.jsonl", "catalog.json", "counts.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_test_rows_of_another_data_set(ratings: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "ratings.dat").write_text((ratings / "ratings.dat").read_text())
    (other / "movies.dat").write_text((ratings / "movies.dat").read_text().replace("Film", "Game"))
    across = dataclasses.replace(config(ratings), test_path=str(other))
    prepare_data(across, out=tmp_path / "data")
    found = rows(tmp_path / "data")
    assert {row.liked for row in found["train"]} == {"Film 8 (1990)"}
    assert {row.liked for row in found["test"]} == {"Game 8 (1990)"}
    assert len(Catalog.read(tmp_path / "data" / "catalog.json")) == 20


def test_a_damaged_rating_is_named(ratings: Path, tmp_path: Path) -> None:
    (ratings / "ratings.dat").write_text("1::1::good::100\n")
    with pytest.raises(ValueError, match=r"ratings.dat, line 1: the rating 'good' is not a number; mend the line"):
        prepare_data(config(ratings), out=tmp_path / "data")
    prepare_rows = dataclasses.replace(config(ratings), task="next_item", min_interactions=1)
    with pytest.raises(ValueError, match="is empty"):  # the stars are not read for the next item
        prepare_data(prepare_rows, out=tmp_path / "data")
