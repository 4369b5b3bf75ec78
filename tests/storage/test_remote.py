from __future__ import annotations

from pathlib import Path

import pytest

from sprec_ray.config.run import ConfigError
from sprec_ray.storage.remote import StorageError, open_storage
from tests.storage.storage_fakes import unreliable


def test_a_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    storage, _ = unreliable(tmp_path / "bucket")
    (tmp_path / "here").write_bytes(b"weights" * 1000)
    storage.upload(tmp_path / "here", "demo/sft/weights")
    storage.download("demo/sft/weights", tmp_path / "there" / "weights")
    assert (tmp_path / "there" / "weights").read_bytes() == b"weights" * 1000
    assert [(name, version.size) for name, version in storage.files("demo").items()] == [("demo/sft/weights", 7000)]
    assert list((tmp_path / "there").iterdir()) == [tmp_path / "there" / "weights"]


def test_what_is_not_there_is_none_and_may_be_deleted(tmp_path: Path) -> None:
    storage, _ = unreliable(tmp_path / "bucket")
    assert storage.read("demo/x") is None
    assert storage.version("demo/x") is None
    assert storage.files("demo") == {}
    storage.delete("demo/x")


def test_a_failure_that_passes_is_survived(tmp_path: Path) -> None:
    storage, handler = unreliable(tmp_path / "bucket")
    handler.failures = 2
    storage.write("demo/x", b"1")
    assert storage.read("demo/x") == b"1"


def test_a_failure_that_stays_is_one_sentence_with_the_remedy(tmp_path: Path) -> None:
    storage, handler = unreliable(tmp_path / "bucket")
    handler.failures = 3
    with pytest.raises(StorageError, match=r"^s3://bucket/runs: could not write demo/x \(.*\); check the network") as e:
        storage.write("demo/x", b"1")
    assert "\n" not in str(e.value)


def test_an_address_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    storage, handler = unreliable(tmp_path / "bucket")
    storage.check()
    assert list((tmp_path / "bucket").iterdir()) == []
    handler.failures = 1
    with pytest.raises(ConfigError, match=r"^output_dir=s3://bucket/runs cannot be used .*; check the network"):
        storage.check()


@pytest.mark.parametrize("address", ["foo://bucket/runs", "s3://bucket/my runs", "s3://bucket/runs?no_such_option=1"])
def test_an_unknown_address_is_refused_without_its_options(address: str) -> None:
    with pytest.raises(ConfigError, match=r"is no address that pyarrow.fs knows .*; give a folder, s3://BUCKET/PREFIX"):
        open_storage(address)
