"""A run whose disk fills up: one clear error, nothing half-written, and the same result once there is room."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sprec_ray.cluster.runs.run import RunOutcome
from sprec_ray.storage.artifacts import MARKER, Stage
from tests.fixture_types import Make, Train

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB; the test is skipped where none may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.usefixtures("ray_session")
def test_a_full_disk_is_one_clear_error_and_the_run_goes_on_when_there_is_room(
    small_disk: Path, output_dir: Path, tiny: Make, train: Train, undisturbed: RunOutcome
) -> None:
    config = tiny("full", f"output_dir={small_disk}", "training.save_steps=1", "decoding.chunk_size=8")
    for cached in (output_dir / "cache").glob("model-*"):
        shutil.copytree(cached, small_disk / "cache" / cached.name)
    ballast = small_disk / "ballast"
    errors: list[str] = []
    for room in (40_000, 300_000, 700_000):
        free = shutil.disk_usage(small_disk).free
        ballast.write_bytes(os.urandom(max(0, free - room)))
        try:
            train(config)
        except OSError as error:
            errors.append(str(error))
        ballast.unlink()
        folder = small_disk / "full"
        assert all(Stage(marker.parent).is_finished for marker in folder.rglob(MARKER))
        assert not [file for file in folder.rglob(".*") if file.name != ".lock" and "ray-train" not in file.parts]
    assert len(errors) >= 2
    assert all("No space left on device" in error and str(small_disk) in error for error in errors), errors
    outcome = train(config)
    adapter = Path("iteration-0") / "preference" / "adapter_model.safetensors"
    assert (outcome.report.parent / adapter).read_bytes() == (undisturbed.report.parent / adapter).read_bytes()
