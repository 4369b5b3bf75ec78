import shutil
from pathlib import Path
from typing import Any

import pytest

from sprec_ray.config.data import DataConfig
from sprec_ray.data.sources.llara import ROWS_PER_HELD_OUT_USER, read_llara
from sprec_ray.data.sources.source import SourceData


def read(folder: Path, **changes: Any) -> SourceData:
    return read_llara(DataConfig(source="llara", path=str(folder), **changes))


def ids_of(data: SourceData, split: str) -> list[str]:
    assert data.splits is not None
    return [example.example_id for example in data.splits[split]]


@pytest.fixture
def copy(raw: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(raw / "llara", tmp_path / "llara"))


def test_users_begin_where_a_row_does_not_continue_the_one_before(raw: Path) -> None:
    """Four users of 6, 4, 12 and 5 rows, of each of which the first three have short histories; one valid row too."""
    data = read(raw / "llara")
    assert ids_of(data, "train") == [
        *("train:0:3", "train:0:4", "train:0:5", "train:1:3"),
        *(f"train:2:{row}" for row in range(3, 12)),
        *("train:3:3", "train:3:4"),
    ]
    assert (ids_of(data, "valid"), ids_of(data, "test")) == (["valid:0"], ["test:0", "test:1"])
    assert data.dropped == {"history_too_short": 13}
    assert len(data.items) == 12


def test_padding_is_removed_and_names_may_hold_the_separator(raw: Path) -> None:
    data = read(raw / "llara")
    assert data.splits is not None
    first, long = data.splits["train"][0], data.splits["train"][12]
    assert first.history == ("The Lanterns", "Lantern", "Café Nørd")
    assert first.target == "A::B"
    assert len(long.history) == 10
    assert long.target == "7"
    assert data.splits["test"][1].candidates == ("Moth", "The Lanterns", "Drift & Co")


def test_a_history_keeps_its_latest_titles(raw: Path) -> None:
    data = read(raw / "llara", max_history=3)
    assert data.splits is not None
    assert data.splits["test"][0].history == ("Moth", "Old Moth Club", "7")


def test_held_out_users_are_in_valid_alone_and_drawn_by_the_seed(raw: Path) -> None:
    data = read(raw / "llara", held_out=0.5)
    users = [{name.split(":")[1] for name in ids_of(data, split)} for split in ("train", "valid")]
    assert sorted(map(len, users)) == [2, 2]
    assert not users[0] & users[1]
    assert data.noted["held_out_users"] == 2
    assert read(raw / "llara", held_out=0.5).splits == data.splits
    others = [ids_of(read(raw / "llara", held_out=0.5, seed=seed), "valid") for seed in range(8)]
    assert any(other != ids_of(data, "valid") for other in others)


def test_of_a_held_out_user_ten_rows_are_kept(copy: Path) -> None:
    file = copy / "llara_tiny_train.jsonl"
    rows = [
        f'{{"seq": {[(first + step) % 12 for step in range(10)]}, "next": {(first + 10) % 12}}}' for first in range(20)
    ]
    file.write_text("\n".join([*rows, '{"seq": [3, 1, 2], "next": 0}', ""]))
    kept = [read(copy, held_out=0.4, seed=seed) for seed in range(6)]
    counts = {len(ids_of(data, "valid")) for data in kept}
    assert counts == {1, ROWS_PER_HELD_OUT_USER}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("id2name.txt", "0::A\n0::B\n", "line 2: item 0 is named twice"),
        ("id2name.txt", "0::A\nx::B\n", "line 2: expected id::name"),
        ("id2name.txt", "0;A\n", "line 1: expected 2 fields"),
        ("llara_tiny_test.jsonl", '{"seq": [0, 1, 2], "next": 99}\n', "row 1: 99 is no item"),
        ("llara_tiny_test.jsonl", '{"seq": [0, 1, 2], "next": 12}\n', "row 1: 12 is no item"),
        ("llara_tiny_test.jsonl", '{"seq": 3, "next": 1}\n', "row 1: expected seq"),
        ("llara_tiny_test.jsonl", '{"seq": [], "next": 1}\n', "no test row has a history of 3 titles"),
    ],
)
def test_what_cannot_be_read_is_named(file: str, text: str, message: str, copy: Path) -> None:
    (copy / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        read(copy)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "llara_tiny_val.jsonl").unlink()
    with pytest.raises(ValueError, match=r"holds 0 files that end in val.jsonl"):
        read(copy)
    assert ids_of(read(copy, held_out=0.3), "test") == ["test:0", "test:1"]


def test_all_users_cannot_be_held_out(raw: Path) -> None:
    with pytest.raises(ValueError, match="leaves none of 4 users to train on; lower it"):
        read(raw / "llara", held_out=0.95)
