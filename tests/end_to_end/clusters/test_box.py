"""configs/box-4gpu.yaml on a node whose four GPUs Ray only counts: every placement ends, each GPU is asked for once."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sprec_ray.cluster.engines.hardware import SIMULATE_GPUS
from sprec_ray.config.load import load_config
from tests.end_to_end.clusters.ray_nodes import REPOSITORY, RayNodes, ray_nodes

pytestmark = pytest.mark.slow

BOX = str(REPOSITORY / "configs" / "box-4gpu.yaml")


@pytest.fixture(scope="module")
def box() -> Iterator[RayNodes]:
    with ray_nodes("--num-cpus=9", "--num-gpus=4", **{SIMULATE_GPUS: "1"}) as nodes:
        yield nodes


@pytest.fixture
def arguments(tiny_file: Path, small_llama: Path, tmp_path: Path) -> list[str]:
    """Of a given model, as on a box: where it is pre-trained first, workers and decoders cannot share GPUs."""
    run = [f"output_dir={tmp_path}", "name=box", f"model.name_or_path={small_llama}", "model.dtype=float32"]
    return [str(tiny_file), BOX, *run, "evaluation.base=false", "decoding.chunk_size=4", "data.num_test=8"]


def gpus(log: str, what: str) -> list[list[str]]:
    """The GPUs of each launch of the decoders or workers, as the job logged them."""
    return [re.findall(r"GPU (\d)", line) for line in re.findall(rf"{what}: (GPU .*)", log)]


SPLIT = ["training.num_workers=2", "training.gpus_per_worker=1", "decoding.num_decoders=2"]
PLACEMENTS = {
    "split": [*SPLIT, "decoding.gpus_per_decoder=1"],
    "colocate": [],
    "sequential": ["training.gpus_per_worker=1", "decoding.gpus_per_decoder=1"],
}
ALL = ["0", "1", "2", "3"]


def run_in(placement: str, number: int, box: RayNodes, arguments: list[str], folder: Path) -> None:
    """Run the box's settings in a placement up to iteration ``number``; each launch asks for each GPU once."""
    done = box.run(
        "jobs.train_selfplay",
        *arguments,
        *(f"decoding.placement={placement}", f"selfplay.num_iterations={number}", *PLACEMENTS[placement]),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "box" / "report.html").is_file()
    workers, decoders = gpus(done.stderr, "training workers"), gpus(done.stderr, "decoders")
    if placement == "split":
        assert [sorted(one + other) for one, other in zip(workers, decoders, strict=True)] == [ALL]
    else:  # each GPU holds a worker and a decoder, at once or in turn: negatives, training, test rows
        assert [sorted(launch) for launch in workers] == [ALL]
        assert [sorted(launch) for launch in decoders] == [ALL] * (1 if placement == "colocate" else 2)


def test_the_box_finishes_and_each_gpu_holds_one_worker_and_one_decoder(
    box: RayNodes, arguments: list[str], tmp_path: Path
) -> None:
    """In the placement of its file, on two of its GPUs: to launch eight processes takes two cores a minute more."""
    half = ["training.num_workers=2", "decoding.num_decoders=2"]
    done = box.run("jobs.train_selfplay", *arguments, *half)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "box" / "report.html").is_file()
    ((first, second),), ((other, another),) = gpus(done.stderr, "training workers"), gpus(done.stderr, "decoders")
    assert {first, second} == {other, another}
    assert first != second


@pytest.mark.soak
def test_every_placement_finishes_and_asks_for_each_gpu_once(
    box: RayNodes, arguments: list[str], tmp_path: Path
) -> None:
    """One run goes on with another iteration in another placement, for data and first SFT need not be done again."""
    for number, placement in enumerate(PLACEMENTS, start=1):
        run_in(placement, number, box, arguments, tmp_path)


REFUSALS = """
import os, sys, ray
from sprec_ray.cluster.runs.resources import check_resources
from sprec_ray.config.load import load_config
from sprec_ray.config.run import ConfigError
ray.init(log_to_driver=False, logging_level="ERROR")
for overrides in sys.stdin.read().splitlines():
    if overrides.startswith("real"):
        os.environ["{simulate}"] = "0"
    try:
        check_resources(load_config([*sys.argv[1:], *overrides.split()[1:]]))
    except ConfigError as error:
        print(str(error).replace(chr(10), "<line feed>"))
"""


def test_what_cannot_be_placed_is_refused_in_one_line(box: RayNodes, arguments: list[str]) -> None:
    """By a process for all: each job would spend seconds on its imports."""
    import torch

    expected = {
        "simulated decoding.num_decoders=5": "ask for 4.51 GPUs, the cluster has 4",
        "simulated training.gpus_per_worker=0.45 decoding.gpus_per_decoder=0.45": "do not share GPUs one by one",
        "simulated model.name_or_path=scratch": "model.name_or_path a model",
    }
    if not torch.cuda.is_available():
        expected["real"] = "torch finds no CUDA device on "
    done = subprocess.run(
        [sys.executable, "-c", REFUSALS.format(simulate=SIMULATE_GPUS), *arguments],
        input="\n".join(expected),
        cwd=REPOSITORY,
        env=box.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for found, message in zip(done.stdout.splitlines(), expected.values(), strict=True):
        assert message in found
        assert "<line feed>" not in found


def test_the_box_keeps_what_changes_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Global batches are the dataset's, and every worker gets its part of them."""
    monkeypatch.chdir(REPOSITORY)
    alone = load_config(["configs/goodreads.yaml", "data.path=x"])
    boxed = load_config(["configs/goodreads.yaml", BOX, "data.path=x"])
    for phase in ("sft", "selfplay_sft", "preference"):
        assert getattr(boxed, phase).global_batch_size == getattr(alone, phase).global_batch_size
