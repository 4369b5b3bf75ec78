import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sprec_ray.config.data import DataConfig
from sprec_ray.data.sources.source import SourceData
from sprec_ray.data.sources.sprec import read_sprec, repair_mojibake, split_titles


def read(folder: Path, **changes: Any) -> SourceData:
    return read_sprec(DataConfig(source="sprec", path=str(folder), **changes))


def splits_of(data: SourceData) -> dict[str, list[str]]:
    assert data.splits is not None
    return {name: [example.example_id for example in examples] for name, examples in data.splits.items()}


def test_rows_come_from_sampled_seed0_when_the_folder_has_no_test_file(raw: Path) -> None:
    """Twelve rows of train; one short, two that cannot be parsed; a ninth of the other nine is valid."""
    data = read(raw / "sprec")
    assert splits_of(data) == {
        "train": ["train:0", "train:1", "train:2", "train:3", "train:7", "train:8", "train:9", "train:10", "train:11"],
        "valid": ["valid:0"],  # the row of the folder's own train file that was not sampled
        "test": ["test:0", "test:1", "test:2"],
    }
    assert data.dropped == {"history_too_short": 1, "target_unparsed": 1, "history_unparsed": 1}


def test_what_is_kept_though_unusual_is_counted(raw: Path) -> None:
    data = read(raw / "sprec")
    assert data.noted == {
        "target_not_in_catalog": 1,
        "target_in_history": 2,
        "history_title_not_in_catalog": 1,
    }
    assert data.splits is not None
    assert data.splits["test"][1].target == "Unknown Target"
    assert data.splits["train"][3].history[-1] == "Unlisted Book"


def test_titles_with_quotes_and_separators_are_parsed(raw: Path) -> None:
    data = read(raw / "sprec")
    assert data.splits is not None
    first, second = data.splits["train"][:2]
    assert first.history == ("Salt Road (Salt, #1)", "Paper Moon, Paper Sun", 'A Girl Named "Dot"')
    assert first.target == 'Good", "Bad" and Late'
    assert second.history == ("Paper Moon, Paper Sun", 'A Girl Named "Dot"', 'Good", "Bad" and Late')


def test_the_catalogue_has_its_genres(raw: Path) -> None:
    items = {item.title: item for item in read(raw / "sprec").items}
    assert len(items) == 5
    assert items["Paper Moon, Paper Sun"].genres == ("romance", "humour")
    assert items["Château·Noir"].genres == ()


def test_a_sampled_folder_itself_finds_the_catalogue_beside_it(raw: Path) -> None:
    alone, beside = read(raw / "sprec" / "sampled_seed0"), read(raw / "sprec")
    assert alone.items == beside.items
    assert alone.splits is not None
    assert beside.splits is not None
    assert alone.splits["test"] == beside.splits["test"]
    assert alone.splits["train"] + alone.splits["valid"] == beside.splits["train"]  # its end is carved off as valid


def test_a_longer_history_keeps_its_last_titles(raw: Path) -> None:
    data = read(raw / "sprec", max_history=2, min_history=1)
    assert data.splits is not None
    assert data.splits["train"][0].history == ("Paper Moon, Paper Sun", 'A Girl Named "Dot"')


def test_without_a_test_file_all_rows_are_cut_in_file_order(raw: Path) -> None:
    """Sixteen rows of train and four of valid make 16, 2 and 2."""
    data = read(raw / "sprec_sft")
    assert splits_of(data) == {
        "train": [f"train:{row}" for row in range(16)],
        "valid": ["valid:0", "valid:1"],
        "test": ["valid:2", "valid:3"],
    }
    assert data.noted["carved_test"] == 2


def test_mojibake_is_repaired_where_the_catalogue_knows_the_title(raw: Path) -> None:
    data = read(raw / "sprec_sft")
    assert data.splits is not None
    assert data.splits["train"][0].history == ("Ångström (1998)", "WALK·E (2007)", "Lantern, The (1996)")
    assert data.splits["train"][1].target == '"Grand Shows" Dogs (1990)'
    titles = {title for rows in data.splits.values() for row in rows for title in (*row.history, row.target)}
    assert titles == {item.title for item in data.items}
    assert data.noted["mojibake_repaired"] > 0
    assert "target_not_in_catalog" not in data.noted


def test_without_catalogue_files_the_titles_of_train_are_the_catalogue(raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw / "sprec" / "sampled_seed0", tmp_path / "rows")
    data = read(tmp_path / "rows")
    assert data.splits is not None
    assert {item.title for item in data.items} == {
        title for row in data.splits["train"] for title in (*row.history, row.target)
    }
    assert data.noted["target_not_in_catalog"] == 1


def test_a_catalogue_of_other_data_is_refused(raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw / "sprec", tmp_path / "rows")
    (tmp_path / "rows" / "eval" / "id2name.json").write_text(json.dumps({"0": "Something Else"}))
    with pytest.raises(ValueError, match=r"the catalogue holds none of the targets; put the id2name\.json"):
        read(tmp_path / "rows")


def test_a_folder_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no train\.json\[l\]\[\.gz\]; set data\.path="):
        read(tmp_path)


def test_too_few_rows_for_three_splits_are_refused(raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw / "sprec_sft", tmp_path / "rows")
    rows = (tmp_path / "rows" / "sft_it0" / "train.jsonl").read_text().split("\n")
    (tmp_path / "rows" / "sft_it0" / "train.jsonl").write_text(rows[0])
    (tmp_path / "rows" / "sft_it0" / "valid.jsonl").write_text(rows[1])
    with pytest.raises(ValueError, match="too few rows for three splits"):
        read(tmp_path / "rows")


def test_a_row_without_input_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps([{"output": '"A"'}]))
    with pytest.raises(ValueError, match=r"train\.json, row 1: no text under 'input'; found the keys output"):
        read(tmp_path)


def test_repair_leaves_clean_titles_alone() -> None:
    assert repair_mojibake("Alien³ (1992)".encode().decode("latin-1")) == "Alien³ (1992)"
    assert repair_mojibake("Fucking Åmål".encode().decode("latin-1")) == "Fucking Åmål"
    assert repair_mojibake("Alien (1979)") is None
    assert repair_mojibake("Alien³ (1992)") is None
    assert repair_mojibake("超次元") is None


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        ('A", "B', ["A", "B"]),
        ('A", ", ", "B', ["A", ", ", "B"]),
        ('X", "Y", "B', ['X", "Y', "B"]),
        ('Q", "R", "B', ["Q", "R", "B"]),
    ],
    ids=["plain", "a title that is a comma", "joined when known", "not joined when unknown"],
)
def test_the_catalogue_decides_where_titles_end(text: str, titles: list[str]) -> None:
    assert split_titles(text, {"A", "B", ", ", 'X", "Y'}) == titles
