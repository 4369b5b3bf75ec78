from pathlib import Path

import pytest

from sprec_ray.data.catalog import Catalog
from sprec_ray.storage.artifacts import ArtifactError
from sprec_ray.types import Item

ITEMS = (
    Item(item_id="1", title="Emma", genres=("Drama",)),
    Item(item_id="2", title='A Child Called "It"', genres=()),
    Item(item_id="3", title="Emma", genres=("Comedy", "Drama")),
    Item(item_id="4", title="Line\u2028Break", genres=("Odd",)),
)


def test_items_of_one_title_are_one_entry_with_their_genres_united() -> None:
    catalog = Catalog.from_items(ITEMS)
    assert catalog.titles == ("Emma", 'A Child Called "It"', "Line\u2028Break")
    assert catalog.genres["Emma"] == ("Drama", "Comedy")
    assert catalog.genres['A Child Called "It"'] == ()


def test_index_length_and_membership_agree_with_titles() -> None:
    catalog = Catalog.from_items(ITEMS)
    assert [catalog.index_of(title) for title in catalog.titles] == list(range(len(catalog)))
    assert catalog.index_of("emma") is None
    assert "Emma" in catalog
    assert "emma" not in catalog


def test_a_catalogue_reads_back_as_it_was_written(tmp_path: Path) -> None:
    catalog = Catalog.from_items(ITEMS)
    catalog.write(tmp_path / "catalog.json")
    assert Catalog.read(tmp_path / "catalog.json") == catalog


def test_a_title_listed_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'Emma' twice; make it with"):
        Catalog(titles=("Emma", "Dune", "Emma"), genres={})


@pytest.mark.parametrize("text", ["[]", '{"titles": ["a"]}', "{", '{"titles": 3, "genres": {}}'])
def test_a_damaged_catalogue_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "catalog.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"catalog\.json"):
        Catalog.read(tmp_path / "catalog.json")
