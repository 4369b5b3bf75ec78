from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sprec_ray.storage.artifacts import (
    MARKER,
    PARTIAL,
    ArtifactError,
    Stage,
    read_json,
    read_rollouts,
    read_rows,
    remove_unfinished_writes,
    write_json,
    write_rows,
    write_text,
)
from sprec_ray.types import Example, Hypothesis, PreferenceGroup, Rollout

ODD = (
    "line\u2028separator",
    "next\x85line",
    'A Child Called "It"',
    "tab\tand\\slash",
    "吾輩は猫である",
    "a\rb\r\nc",
    "\u2029",
)


def stage_with(folder: Path, **files: str) -> Stage:
    stage = Stage(folder / "sft").start()
    for name, text in files.items():
        write_text(stage.path / name, text)
    return stage


def test_a_written_file_has_its_text_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "file.txt", "one\ntwo\u2028\n")
    assert (tmp_path / "deep" / "file.txt").read_bytes() == "one\ntwo\u2028\n".encode()
    assert os.listdir(tmp_path / "deep") == ["file.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_keeps_the_previous_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    path = tmp_path / "file.txt"
    write_text(path, "before")
    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(OSError, match="no space left"):
        write_text(path, "after")
    monkeypatch.undo()
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_rows_that_fail_half_way_keep_the_previous_rows(tmp_path: Path) -> None:
    def rows() -> Iterator[Example]:
        yield Example(example_id="new", history=(), target="Dune")
        raise RuntimeError("the source broke off")

    old = [Example(example_id="old", history=("Emma",), target="Dune")]
    write_rows(tmp_path / "rows.jsonl", old)
    with pytest.raises(RuntimeError, match="broke off"):
        write_rows(tmp_path / "rows.jsonl", rows())
    assert read_rows(tmp_path / "rows.jsonl", Example) == old


def test_a_stage_is_finished_only_by_its_marker(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "sft")
    assert not stage.is_finished
    stage.start()
    write_text(stage.path / "adapter" / "weights", "w" * 100)
    assert not stage.is_finished
    stage.finish({"loss": 1.5})
    assert stage.is_finished
    assert stage.summary == {"loss": 1.5}
    assert read_json(stage.path / MARKER)["files"] == {"adapter/weights": 100}


def test_the_marker_is_written_after_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash while it is written leaves a stage that is not finished, with its files."""
    stage = stage_with(tmp_path, weights="w")

    def fail(*_: object) -> None:
        raise OSError("crash")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="crash"):
        stage.finish({})
    monkeypatch.undo()
    assert not stage.is_finished
    assert os.listdir(stage.path) == ["weights"]


def test_starting_again_removes_what_an_interrupted_run_left(tmp_path: Path) -> None:
    stage = stage_with(tmp_path, half="x")
    stage.start()
    assert os.listdir(stage.path) == []


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_finished_stage_that_lost_something_names_file_and_remedy(tmp_path: Path, damage: str) -> None:
    stage = stage_with(tmp_path, rows="12345", weights="67890")
    stage.finish({})
    if damage == "missing":
        (stage.path / "weights").unlink()
    else:
        (stage.path / "weights").write_text("67")
    with pytest.raises(ArtifactError) as caught:
        _ = stage.is_finished
    text = str(caught.value)
    assert text.startswith(f"{stage.path / 'weights'} is missing or truncated (expected 5 bytes)")
    assert f"delete {stage.path} and the stages after it" in text


def test_files_added_to_a_finished_stage_do_no_harm(tmp_path: Path) -> None:
    stage = stage_with(tmp_path, rows="12345")
    stage.finish({})
    write_text(stage.path / "notes.txt", "mine")
    assert stage.is_finished


def test_a_damaged_marker_is_an_error_not_an_unfinished_stage(tmp_path: Path) -> None:
    stage = stage_with(tmp_path)
    (stage.path / MARKER).write_text('{"files": {')
    with pytest.raises(ArtifactError, match=re.escape(f"{stage.path / MARKER} is damaged")):
        _ = stage.is_finished


def test_json_round_trips_odd_text_readably(tmp_path: Path) -> None:
    write_json(tmp_path / "value.json", {"titles": list(ODD)})
    assert read_json(tmp_path / "value.json") == {"titles": list(ODD)}
    assert "吾輩は猫である" in (tmp_path / "value.json").read_text(encoding="utf-8")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for read in (read_json, lambda path: read_rows(path, Example), read_rollouts):
        with pytest.raises(ArtifactError, match=re.escape(f"{tmp_path / 'none'} does not exist")):
            read(tmp_path / "none")


def test_rows_with_odd_titles_round_trip(tmp_path: Path) -> None:
    """U+2028 and U+0085 end a line for ``str.splitlines``, not here."""
    rows = [
        PreferenceGroup(example_id=str(place), history=ODD[:place], chosen=title, rejected=(title[::-1], *ODD))
        for place, title in enumerate(ODD)
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl", PreferenceGroup) == rows
    assert (tmp_path / "rows.jsonl").read_bytes().count(b"\n") == len(rows)


def test_no_rows_round_trip(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [])
    assert read_rows(tmp_path / "rows.jsonl", Example) == []


@pytest.mark.parametrize(
    "line",
    [
        '{"example_id": "1", "history": ["Em',
        '{"example_id": "1"}',
        '{"example_id": "1", "history": [], "target": "Dune", "extra": 1}',
        "[]",
        "3",
        "null",
    ],
)
def test_a_damaged_row_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    whole = json.dumps({"example_id": "0", "history": ["a\u2028b"], "target": "Dune"}, ensure_ascii=False)
    path.write_text(f"{whole}\n{whole}\n{line}\n", encoding="utf-8")
    with pytest.raises(ArtifactError, match=re.escape(f"{path}, line 3 is damaged")):
        read_rows(path, Example)


def test_a_file_of_rows_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"example_id": "\xff\xfe"}\n')
    with pytest.raises(ArtifactError, match=re.escape(str(path))):
        read_rows(path, Example)


def test_rollouts_round_trip(tmp_path: Path) -> None:
    hypotheses = tuple(
        Hypothesis(text=text, logp=-1.25 * place, num_tokens=place, finished=place % 2 == 0)
        for place, text in enumerate(ODD)
    )
    rollouts = [Rollout(example_id="1", hypotheses=hypotheses), Rollout(example_id="2", hypotheses=())]
    write_rows(tmp_path / "rollouts.jsonl", rollouts)
    assert read_rollouts(tmp_path / "rollouts.jsonl") == rollouts


@pytest.mark.parametrize("hypotheses", ['[{"text": "Du"}]', "[3]", "7"])
def test_a_damaged_rollout_is_named_with_its_file(tmp_path: Path, hypotheses: str) -> None:
    path = tmp_path / "rollouts.jsonl"
    path.write_text(f'{{"example_id": "1", "hypotheses": {hypotheses}}}\n')
    with pytest.raises(ArtifactError, match=re.escape(str(path))):
        read_rollouts(path)


def test_what_a_killed_write_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "sft" / PARTIAL
    folder.mkdir(parents=True)
    left, kept = folder / ".state.safetensors.0123abcd", [tmp_path / ".lock", tmp_path / "a.0123abcd", folder / "state"]
    for file in (left, *kept):
        file.write_text("x")
    remove_unfinished_writes(tmp_path)
    assert not left.exists()
    assert all(file.exists() for file in kept)


def test_the_partial_work_of_a_stage_outlives_its_start_and_ends_with_it(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "stage").start()
    for file in (stage.path / "rows.jsonl", stage.partial / "state.safetensors", stage.path / "old" / "file"):
        write_text(file, "x")
    stage.start()
    assert sorted(file.name for file in stage.path.rglob("*")) == [PARTIAL, "state.safetensors"]
    write_text(stage.path / "new", "x")
    stage.finish({})
    assert stage.is_finished
    assert list(read_json(stage.path / MARKER)["files"]) == ["new"]
    assert not stage.partial.exists()
