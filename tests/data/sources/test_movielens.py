import shutil
from pathlib import Path

import pytest

from sprec_ray.config.data import DataConfig
from sprec_ray.data.sources.movielens import read_movielens
from sprec_ray.data.sources.source import SourceData


def read(folder: Path) -> SourceData:
    return read_movielens(DataConfig(source="movielens", path=str(folder)))


def test_titles_are_kept_as_in_the_file_and_read_as_latin_1(raw: Path) -> None:
    titles = {item.item_id: item.title for item in read(raw / "ml100k").items}
    assert titles["2"] == "Lantern, The (1996)"
    assert titles["4"] == "Misère, La (1994)"
    assert titles["5"] == "unknown"


def test_genres_are_named_and_unknown_is_none(raw: Path) -> None:
    genres = {item.item_id: item.genres for item in read(raw / "ml100k").items}
    assert genres["1"] == ("Comedy",)
    assert genres["9"] == ("Comedy", "Drama")
    assert genres["5"] == ()


def test_every_rating_is_an_interaction_with_its_line_as_order(raw: Path) -> None:
    interactions = read(raw / "ml100k").interactions
    assert interactions is not None
    assert len(interactions) == 9
    assert [row.order for row in interactions] == list(range(1, 10))
    assert (interactions[3].item_id, interactions[3].timestamp) == ("4", 100.0)


def test_the_double_colon_layout_allows_colons_in_titles_and_carriage_returns(raw: Path) -> None:
    data = read(raw / "dat")
    assert [item.title for item in data.items] == ["Robot Holiday (1995)", "Éclair::Rush (1996)"]
    assert data.items[0].genres == ("Action", "Comedy")
    assert data.interactions is not None
    assert data.interactions[1].timestamp == 978302109.0


def test_the_double_colon_layout_may_be_utf_8(raw: Path) -> None:
    assert read(raw / "dat_utf8").items[0].title == "Éclair (1996)"


def test_the_csv_layout_is_read(raw: Path) -> None:
    data = read(raw / "csv")
    assert [item.title for item in data.items] == ["Lantern, The (1996)", 'Say "No" (1999)']
    assert [item.genres for item in data.items] == [("Drama", "Comedy"), ()]
    assert data.interactions is not None
    assert [row.item_id for row in data.interactions] == ["1", "2"]


def test_a_folder_without_ratings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds none of u\.data, ratings\.dat, ratings\.csv; set data\.path="):
        read(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [("1\t2\t3", r"u\.data, line 10: expected 4 fields"), ("1\t2\t3\tnoon", r"u\.data, line 10: the timestamp 'noon'")],
)
def test_a_bad_line_is_named(raw: Path, tmp_path: Path, line: str, message: str) -> None:
    shutil.copytree(raw / "ml100k", tmp_path / "ml")
    with (tmp_path / "ml" / "u.data").open("a") as file:
        file.write("\n" + line)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "ml")


def test_a_missing_item_file_is_named(raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw / "ml100k", tmp_path / "ml")
    (tmp_path / "ml" / "u.item").unlink()
    with pytest.raises(ValueError, match=r"u\.item\[\.gz\] does not exist"):
        read(tmp_path / "ml")
