"""Two machines and an address: each machine has a mirror, the address is a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from sprec_ray.storage.artifacts import MARKER, Stage, write_text
from sprec_ray.storage.mirror import Mirror, open_mirror, working_folder
from sprec_ray.storage.remote import Storage, StorageError
from tests.storage.storage_fakes import Unreliable, mirror_of, unreliable


@pytest.fixture
def place(tmp_path: Path) -> tuple[Storage, Unreliable]:
    return unreliable(tmp_path / "bucket")


@pytest.fixture
def first(place: tuple[Storage, Unreliable], tmp_path: Path) -> Mirror:
    return mirror_of(place[0], tmp_path / "first")


@pytest.fixture
def second(place: tuple[Storage, Unreliable], tmp_path: Path) -> Mirror:
    return mirror_of(place[0], tmp_path / "second")


def fill(mirror: Mirror, stage: str, **files: str) -> Stage:
    made = Stage(mirror.folder / "demo" / stage).start()
    for name, text in files.items():
        write_text(made.path / name, text)
    made.finish({})
    return made


def test_a_second_machine_continues_from_the_address_alone(first: Mirror, second: Mirror) -> None:
    write_text(first.folder / "demo" / "config.yaml", "seed: 0")
    fill(first, "sft", adapter="A_0")
    first.push(first.folder / "demo")
    second.pull("demo")
    assert (second.folder / "demo" / "config.yaml").read_text() == "seed: 0"
    assert Stage(second.folder / "demo" / "sft").is_finished
    fill(second, "iteration-0/sft", adapter="S_0")
    second.push(second.folder / "demo")
    first.pull("demo")
    assert (first.folder / "demo" / "iteration-0" / "sft" / "adapter").read_text() == "S_0"


def test_the_marker_of_a_stage_is_written_last(
    first: Mirror, second: Mirror, place: tuple[Storage, Unreliable]
) -> None:
    """A crash between two files leaves a stage without a marker, so it starts over."""
    fill(first, "sft", adapter="A_0", steps="[]")
    place[1].max_writes = 2
    with pytest.raises(StorageError):
        first.push(first.folder / "demo")
    assert [Path(path).name for path in place[1].writes] == ["adapter", "steps"]
    assert Stage(first.folder / "demo" / "sft").is_finished
    place[1].max_writes = 10**9
    first.push(first.folder / "demo")
    assert [Path(path).name for path in place[1].writes[2:]] == [MARKER]  # only what was missing
    second.pull("demo")
    assert Stage(second.folder / "demo" / "sft").is_finished


def test_what_is_equal_is_not_copied_again(first: Mirror, place: tuple[Storage, Unreliable]) -> None:
    stage = fill(first, "sft", adapter="A_0")
    first.push(first.folder / "demo")
    before = (stage.path / "adapter").stat().st_mtime_ns
    num_writes = len(place[1].writes)
    first.pull("demo")
    first.push(first.folder / "demo")
    assert (stage.path / "adapter").stat().st_mtime_ns == before
    assert len(place[1].writes) == num_writes


def test_of_an_unfinished_stage_only_its_partial_folder_is_pushed(
    first: Mirror, second: Mirror, place: tuple[Storage, Unreliable]
) -> None:
    """Other files may be half written; the finished stage replaces what was partial."""
    stage = Stage(first.folder / "demo" / "sft").start()
    write_text(stage.path / "adapter", "A")
    write_text(stage.partial / "state", "step 4")
    first.push(stage.partial)
    first.push(first.folder / "demo")
    assert list(place[0].files("demo")) == ["demo/sft/partial/state"]
    second.pull("demo")
    assert (second.folder / "demo" / "sft" / "partial" / "state").read_text() == "step 4"
    fill(first, "sft", adapter="A_0")
    first.push(first.folder / "demo")
    assert sorted(place[0].files("demo")) == [f"demo/sft/{MARKER}", "demo/sft/adapter"]
    second.pull("demo")
    assert Stage(second.folder / "demo" / "sft").is_finished
    assert not (second.folder / "demo" / "sft" / "partial" / "state").exists()


def test_what_was_deleted_at_the_address_is_deleted_here(first: Mirror, place: tuple[Storage, Unreliable]) -> None:
    fill(first, "sft", adapter="A_0")
    first.push(first.folder / "demo")
    for name in place[0].files("demo"):
        place[0].delete(name)
    first.pull("demo")
    assert not any(path.is_file() for path in (first.folder / "demo").rglob("*"))


def test_a_file_that_was_damaged_here_is_taken_from_the_address(first: Mirror) -> None:
    stage = fill(first, "sft", adapter="A_0")
    first.push(first.folder / "demo")
    (stage.path / "adapter").write_text("A")
    first.pull("demo")
    assert (stage.path / "adapter").read_text() == "A_0"


def test_a_stage_that_another_machine_finished_replaces_what_was_begun_here(first: Mirror, second: Mirror) -> None:
    fill(second, "sft", adapter="A_0")
    second.push(second.folder / "demo")
    write_text(first.folder / "demo" / "sft" / "state", "step 4")
    first.pull("demo")
    assert sorted(path.name for path in (first.folder / "demo" / "sft").iterdir()) == [MARKER, "adapter"]


def test_the_working_folder_of_an_address_is_below_the_home_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPREC_RAY_HOME", str(tmp_path))
    assert working_folder("s3://bucket/runs").parent == tmp_path
    assert working_folder("s3://bucket/runs") == working_folder("s3://bucket/runs/")
    assert working_folder("s3://bucket/runs") != working_folder("s3://bucket/other")
    assert working_folder("file:///data/runs") == Path("/data/runs")


def test_a_local_folder_has_no_mirror(tmp_path: Path) -> None:
    mirror = open_mirror(str(tmp_path))
    fill(mirror, "sft", adapter="A_0")
    with mirror.opened("demo"):
        mirror.push(tmp_path / "demo")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo"]
