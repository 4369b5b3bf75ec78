"""configs/box-4gpu.yaml on a node whose four GPUs Ray only counts: every placement ends, each GPU is asked for once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sprec_ray.cluster.engines.hardware import SIMULATE_GPUS
from sprec_ray.config.load import load_config
from tests.end_to_end.ray_nodes import REPOSITORY, RayNodes, ray_nodes

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


def test_every_placement_finishes_and_asks_for_each_gpu_once(
    box: RayNodes, arguments: list[str], tmp_path: Path
) -> None:
    """One run goes on with another iteration in another placement, for data and first SFT need not be done again."""
    for number, (placement, overrides) in enumerate(PLACEMENTS.items(), start=1):
        done = box.run(
            "jobs.train_selfplay",
            *arguments,
            *(f"decoding.placement={placement}", f"selfplay.num_iterations={number}", *overrides),
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert (tmp_path / "box" / "report.html").is_file()
        workers, decoders = gpus(done.stderr, "training workers"), gpus(done.stderr, "decoders")
        if placement == "split":
            assert [sorted(one + other) for one, other in zip(workers, decoders, strict=True)] == [ALL]
        else:  # each GPU holds a worker and a decoder, at once or in turn: negatives, training, test rows
            assert [sorted(launch) for launch in workers] == [ALL]
            assert [sorted(launch) for launch in decoders] == [ALL] * (1 if placement == "colocate" else 2)


def test_gpus_that_are_not_there_are_refused_at_once(box: RayNodes, arguments: list[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has GPUs")
    real = RayNodes({**box.environment, SIMULATE_GPUS: "0"}, box.address)
    done = real.run("jobs.train_selfplay", *arguments, timeout_s=120)
    assert done.returncode == 2
    assert re.search(r"error: .* torch finds no CUDA device on [\d.]+: ", done.stderr)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["decoding.num_decoders=5"], "ask for 4.51 GPUs, the cluster has 4"),
        (["training.gpus_per_worker=0.45", "decoding.gpus_per_decoder=0.45"], "do not share GPUs one by one"),
        (["model.name_or_path=scratch"], "model.name_or_path a model"),
    ],
)
def test_what_cannot_be_placed_is_refused_in_one_line(
    overrides: list[str], message: str, box: RayNodes, arguments: list[str]
) -> None:
    done = box.run("jobs.train_selfplay", *arguments, *overrides, timeout_s=120)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in line


def test_the_box_keeps_what_changes_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Global batches are the dataset's, and every worker gets its part of them."""
    monkeypatch.chdir(REPOSITORY)
    alone = load_config(["configs/goodreads.yaml", "data.path=x"])
    boxed = load_config(["configs/goodreads.yaml", BOX, "data.path=x"])
    for phase in ("sft", "selfplay_sft", "preference"):
        assert getattr(boxed, phase).global_batch_size == getattr(alone, phase).global_batch_size
