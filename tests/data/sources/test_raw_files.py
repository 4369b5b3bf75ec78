import gzip
import json
from pathlib import Path

import pytest

from sprec_ray.config.data import DataConfig
from sprec_ray.data.sources.raw_files import (
    data_folder,
    find_file,
    numbered_lines,
    read_json_rows,
    read_text,
    require_file,
    split_fields,
)

ROWS = [{"a": "1"}, {"a": "x\u2028y"}, {"a": '"'}]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def test_a_compressed_file_stands_for_the_plain_one(tmp_path: Path) -> None:
    (tmp_path / "u.data.gz").write_bytes(gzip.compress(b"1\n"))
    path = find_file(tmp_path, "u.data")
    assert path is not None
    assert read_text(path) == "1\n"
    assert find_file(tmp_path, "u.item") is None


def test_lines_end_at_line_feeds_only_and_blank_ones_are_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "f", "a\u2028b\r\n\nc\u0085d\n e")
    assert list(numbered_lines(path)) == [(1, "a\u2028b"), (3, "c\u0085d"), (4, " e")]


def test_a_byte_order_mark_is_not_part_of_the_first_line(tmp_path: Path) -> None:
    assert list(numbered_lines(write(tmp_path / "f", "\ufeffa\n"))) == [(1, "a")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git lfs pull"),
        (b"", "is empty; fetch it again"),
        (b"\n \n", "is empty; fetch it again"),
        (b"a\nb\xe9\n", r"f, line 2 is not utf-8"),
    ],
)
def test_a_file_that_is_not_the_data_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_text(tmp_path / "f")


@pytest.mark.parametrize("content", [gzip.compress(b"abc" * 1000)[:-9], b"not gzip at all"], ids=["cut", "other"])
def test_a_truncated_gzip_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"f\.gz is not a whole gzip file .* fetch it again"):
        read_text(tmp_path / "f.gz")


def test_a_pointer_under_a_compressed_name_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "f.gz").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="Git-LFS pointer"):
        read_text(tmp_path / "f.gz")


def test_a_missing_file_or_folder_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"u\.data\[\.gz\] does not exist; set data\.path="):
        require_file(tmp_path, "u.data")
    with pytest.raises(ValueError, match=r"set data\.path="):
        read_text(tmp_path / "none")
    with pytest.raises(ValueError, match=r"none is not a folder; set data\.path="):
        data_folder(DataConfig(source="sprec", path=str(tmp_path / "none")))
    with pytest.raises(ValueError, match=r"needs data\.path=FOLDER"):
        data_folder(DataConfig(source="sprec"))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=4, ensure_ascii=False),
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
        "\r\n".join(json.dumps(row) for row in ROWS),
        "".join(json.dumps(row) for row in ROWS),
    ],
    ids=["list", "indented", "lines", "crlf", "concatenated"],
)
def test_rows_are_read_from_every_layout_of_json(tmp_path: Path, text: str) -> None:
    assert read_json_rows(write(tmp_path / "rows.json", text), columns=["a"]) == ROWS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": "1"}\n{"a": \n', r"rows\.json, line \d is not JSON"),
        ('{"a": "1"}\n\n{"b": "2"}', r"rows\.json, line 3: no text under 'a'; found the keys b"),
        ('[{"a": "1"}, 5]', r"rows\.json, row 2: expected an object, found int"),
        ('{"a": null}', r"rows\.json, line 1: no text under 'a'"),
        ("[]", r"rows\.json is empty"),
        ("{'a': 1}", r"rows\.json, line 1 is not JSON"),
    ],
)
def test_a_bad_row_is_named_by_file_and_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_json_rows(write(tmp_path / "rows.json", text), columns=["a"])


def test_a_line_with_too_few_fields_is_named() -> None:
    with pytest.raises(ValueError, match=r"u\.data, line 3: expected 4 fields separated by '\\t', found 2"):
        split_fields("1\t2", "\t", at_least=4, where="u.data, line 3")
