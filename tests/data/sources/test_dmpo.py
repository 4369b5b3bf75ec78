from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sprec_ray.config.data import DataConfig
from sprec_ray.data.sources.dmpo import read_dmpo
from sprec_ray.data.sources.source import SourceData


def row(history: list[str], named: tuple[str, str], ranked: tuple[str, str], *, both: bool = True) -> dict[str, Any]:
    """A row as published, its odd spaces included."""
    texts = [f" <Title:{first}> ,  <Title:{second}> " for first, second in (ranked, ranked[::-1])]
    watched = " ".join(f" <Title:{title}> " for title in history)
    return {
        "instruction": f"You are an assistant working on movie recommendations. Here is the user's history of movies "
        f"they have watched: {watched}. Rank the likelihood of the user watching the two movies  <Title:{named[0]}>  "
        f"and  <Title:{named[1]}> .",
        "input": "",
        "output": texts if both else texts[0],
    }


def write(folder: Path, domain: str = "films") -> None:
    """Two training users with two disliked titles each, one of them in three files, and two test users."""
    first = [
        row(["Dune ", "Emma"], ("It", "Ulysses"), ("Ulysses", "It")),
        row(["Dune ", "Emma"], ("Ulysses", "Cujo"), ("Ulysses", "Cujo")),
    ]
    second = [
        row(["A > B"], ("Caf&eacute;  1", "Big"), ("Big", "Caf&eacute;  1")),
        row(["A > B"], ("Big", "Heat"), ("Big", "Heat")),
    ]
    third = [row(["Solo"], ("Up", "Her"), ("Her", "Up"))]
    (folder / f"{domain}_dpo_ranking_2.json").write_text(json.dumps([*first, *second]))
    (folder / f"{domain}_dpo_ranking_1.json").write_text(json.dumps([first[0], *third]))
    (folder / f"{domain}_sft_ranking.json").write_text(
        json.dumps([row(["Dune ", "Emma"], ("It", "Ulysses"), ("Ulysses", "It"), both=False)])
    )
    test = [
        row(
            ["Heat (1995)"],
            ("Bug's Life, A (1998)", "Jaws (1975)"),
            ("Jaws (1975)", "Bug's Life, A (1998)"),
            both=False,
        )
    ]
    (folder / f"{domain}_eval_ranking.json.gz").write_bytes(gzip.compress(json.dumps(test).encode()))


def read(folder: Path, **changes: Any) -> SourceData:
    return read_dmpo(DataConfig(source="dmpo", task="pairs", path=str(folder), **changes))


def test_consecutive_rows_of_a_history_are_one_user(tmp_path: Path) -> None:
    write(tmp_path)
    data = read(tmp_path)
    assert data.pairs is not None
    one, two = data.pairs["train"]
    assert (one.history, one.liked, one.disliked, one.liked_first) == (
        ("Dune", "Emma"),
        "Ulysses",
        ("It", "Cujo"),
        (False, True),
    )
    assert (two.history, two.disliked) == (("A > B",), ("Café 1", "Heat"))
    assert {item.title for item in data.items} >= {"Dune", "Café 1", "Jaws (1975)", "Her"}
    assert data.noted["title_unescaped"] == 1


def test_users_of_smaller_training_files_only_are_for_validation(tmp_path: Path) -> None:
    write(tmp_path)
    data = read(tmp_path)
    assert data.pairs is not None
    assert [example.history for example in data.pairs["valid"]] == [("Solo",)]
    assert len({example.example_id for rows in data.pairs.values() for example in rows}) == 4


def test_titles_are_cut_where_asked(tmp_path: Path) -> None:
    write(tmp_path)
    data = read(tmp_path, cut_titles=True)
    assert data.pairs is not None
    (test,) = data.pairs["test"]
    assert (test.history, test.liked, test.disliked) == (("Heat",), "Jaws", ("Bug's Life",))


def test_titles_that_become_equal_are_dropped(tmp_path: Path) -> None:
    write(tmp_path)
    same = row(["Dune"], ("Heat (1986)", "Heat (1995)"), ("Heat (1986)", "Heat (1995)"))
    other = row(["Dune"], ("Heat (1986)", "Jaws"), ("Jaws", "Heat (1986)"))
    (tmp_path / "films_eval_ranking.json.gz").write_bytes(gzip.compress(json.dumps([same, other]).encode()))
    data = read(tmp_path, cut_titles=True)
    assert data.pairs is not None
    assert data.dropped == {"equal_titles": 1}
    assert [example.liked for example in data.pairs["test"]] == ["Jaws"]


def test_several_domains_are_listed(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, "games")
    assert read(tmp_path, domain="games").pairs is not None
    with pytest.raises(ValueError, match=r"set data\.domain to one of films, games"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"holds no data set 'books'; set data\.domain to one of films, games"):
        read(tmp_path, domain="books")


def test_a_folder_without_such_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no <domain>_eval_ranking\.json; set data.path=FOLDER"):
        read(tmp_path)
    write(tmp_path)
    (tmp_path / "films_eval_ranking.json.gz").unlink()
    with pytest.raises(ValueError, match=r"films_eval_ranking.json\[.gz\] does not exist"):
        read(tmp_path)


@pytest.mark.parametrize(
    "bad",
    [
        {"instruction": "no titles", "output": " <Title:A> ,  <Title:B> "},
        {"instruction": "x <Title:A> and <Title:B> .", "output": " <Title:A> ,  <Title:C> "},
        {"instruction": "x <Title:A> and <Title:B> .", "output": [["A", "B"]]},
        {"instruction": "x <Title:A> and <Title:B> ."},
    ],
)
def test_a_row_that_is_no_pair_is_named(tmp_path: Path, bad: dict[str, Any]) -> None:
    write(tmp_path)
    (tmp_path / "films_eval_ranking.json.gz").write_bytes(gzip.compress(json.dumps([bad]).encode()))
    with pytest.raises(ValueError, match=r"films_eval_ranking.json.gz, row 1: expected an instruction"):
        read(tmp_path)


def test_what_is_not_json_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "films_sft_ranking.json").write_text("[{")
    with pytest.raises(ValueError, match=r"films_sft_ranking.json, line 1 is not JSON"):
        read(tmp_path)
