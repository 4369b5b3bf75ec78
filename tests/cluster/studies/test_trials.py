"""What trials leave behind, without Ray."""

from __future__ import annotations

from pathlib import Path

from sprec_ray.cluster.studies.trial_process import error_file
from sprec_ray.cluster.studies.trials import MAX_ERROR_CHARS, link_cache, one_line, read_error


def test_an_error_is_one_line_however_long_its_report(tmp_path: Path) -> None:
    error_file(tmp_path, "first").parent.mkdir()
    error_file(tmp_path, "first").write_text(
        "TrainingError: sft:  7 worker(s) were killed\nPID MEM COMMAND\n1 0.5 ray\n"
    )
    assert read_error(tmp_path, "first") == "TrainingError: sft: 7 worker(s) were killed"
    assert read_error(tmp_path, "second") == "its process died"
    assert len(one_line("x" * 10_000)) == MAX_ERROR_CHARS


def test_runs_below_a_folder_share_the_cache_beside_it(tmp_path: Path) -> None:
    for _ in range(2):
        link_cache(tmp_path / "mine" / "runs")
    (tmp_path / "cache" / "stages").mkdir()
    assert (tmp_path / "mine" / "runs" / "cache" / "stages").is_dir()
