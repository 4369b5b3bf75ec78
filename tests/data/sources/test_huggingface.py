import datetime
from pathlib import Path
from typing import Any

import datasets
import pytest

from sprec_ray.config.data import DataConfig
from sprec_ray.data.sources.huggingface import read_huggingface
from sprec_ray.data.sources.source import SourceData

ROWS: dict[str, list[Any]] = {
    "user_id": ["a", "a", "b"],
    "item_id": [1, 2, 1],
    "title": ["Emma", "Line\nBreak", "Emma!"],
    "timestamp": [3.0, 4.5, 5.0],
    "genres": [["Drama", "Comedy"], None, ["Drama"]],
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def read(path: Path, **changes: Any) -> SourceData:
    return read_huggingface(DataConfig(source="huggingface", path=str(path), **changes))


def timestamps(data: SourceData) -> list[float]:
    assert data.interactions is not None
    return [row.timestamp for row in data.interactions]


def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(ROWS).save_to_disk(tmp_path / "saved")
    data = read(tmp_path / "saved", genres_column="genres")
    assert [(item.item_id, item.title, item.genres) for item in data.items] == [
        ("1", "Emma", ("Drama", "Comedy")),
        ("2", "Line Break", ()),
    ]
    assert timestamps(data) == [3.0, 4.5, 5.0]
    assert data.interactions is not None
    assert [(row.user_id, row.order) for row in data.interactions] == [("a", 0), ("a", 1), ("b", 2)]
    assert data.noted == {"title_differs_from_first": 1}


def test_the_split_of_a_saved_dict_is_chosen_by_name(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict(ROWS)
    datasets.DatasetDict({"all": table, "few": table.select([0])}).save_to_disk(tmp_path / "saved")
    assert len(timestamps(read(tmp_path / "saved", hf_split="few"))) == 1
    with pytest.raises(ValueError, match=r"has no split 'train'; set data\.hf_split to one of all, few"):
        read(tmp_path / "saved")


def test_a_csv_file_is_read_and_rows_with_a_gap_are_counted(raw: Path) -> None:
    data = read(raw / "table" / "ratings.csv", genres_column="genres")
    assert [(item.item_id, item.title, item.genres) for item in data.items] == [
        ("10", "Lantern, The", ("Drama", "Comedy")),
        ("11", "Say “No”", ("Drama",)),
        ("12", "Robot Holiday", ()),
    ]
    assert data.dropped == {"time_missing": 1}
    assert timestamps(data) == [1000.0, 1001.0, 1003.0]


def test_json_lines_without_an_item_column_take_the_title_as_item(raw: Path) -> None:
    data = read(raw / "table" / "ratings.jsonl", user_column="who", title_column="name", time_column="when")
    assert [item.item_id for item in data.items] == ["Line\u2028Break", "Emma"]
    assert timestamps(data)[0] == datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC).timestamp()
    assert data.dropped == {"user_missing": 1}


def test_dates_without_a_zone_are_utc(tmp_path: Path) -> None:
    rows = ROWS | {"timestamp": [datetime.datetime(1970, 1, 2), datetime.datetime(1970, 1, 3), None]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "rows.parquet")
    data = read(tmp_path / "rows.parquet")
    assert timestamps(data) == [86400.0, 172800.0]
    assert data.dropped == {"time_missing": 1}


def test_a_folder_of_files_is_read_in_order_of_name_and_by_split(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict(ROWS)
    for name, row in (("train-1", 1), ("train-0", 0), ("test-0", 2)):
        table.select([row]).to_parquet(tmp_path / f"{name}.parquet")
    assert timestamps(read(tmp_path)) == [3.0, 4.5]
    assert timestamps(read(tmp_path, hf_split="test")) == [5.0]
    assert timestamps(read(tmp_path, hf_split="other")) == [5.0, 3.0, 4.5]


def test_a_missing_column_is_named_with_those_found(raw: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no column 'who'; found user_id, item_id, title, timestamp, genres: set data\."
    ):
        read(raw / "table" / "ratings.csv", user_column="who")
    with pytest.raises(ValueError, match="no column 'tags'; found"):
        read(raw / "table" / "ratings.csv", genres_column="tags")


def test_a_time_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("user_id,item_id,title,timestamp\n1,2,Emma,soon\n")
    with pytest.raises(ValueError, match=r"rows\.csv, row 0: the time 'soon' is neither"):
        read(tmp_path / "rows.csv")


def test_what_cannot_be_loaded_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"set data\.path to a file, a folder or a name on the hub"):
        read(tmp_path / "none")
    with pytest.raises(ValueError, match="must hold files of one format"):
        read(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"user_id": \n')
    with pytest.raises(ValueError, match="cannot be read as a table"):
        read(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("value", ["inf", "-inf"])
def test_a_time_that_is_not_finite_is_refused(tmp_path: Path, value: str) -> None:
    (tmp_path / "rows.csv").write_text(f"user_id,item_id,title,timestamp\n1,2,Emma,{value}\n")
    with pytest.raises(ValueError, match=r"the time .*inf.* is neither a number nor a date"):
        read(tmp_path / "rows.csv")
