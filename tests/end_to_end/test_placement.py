"""Where decoders and training workers run changes when they run, not what comes out."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from sprec_ray.cluster.runs.run import RunOutcome, train_selfplay
from sprec_ray.storage.timeline import read_timeline
from tests.fixture_types import Make, Train

pytestmark = pytest.mark.slow

PLACEMENTS = {
    "colocate": {"placement: split": "placement: colocate"},
    # The worker takes both CPUs of the test's cluster: side by side there would be no room for the decoder.
    "sequential": {"placement: split": "placement: sequential", "cpus_per_worker: 1.0": "cpus_per_worker: 2.0"},
}
OVERRIDES = {
    "colocate": ["decoding.placement=colocate"],
    "sequential": ["decoding.placement=sequential", "training.cpus_per_worker=2"],
}
ROLLOUTS, ADAPTER = "rollouts/rollouts.jsonl", "preference/adapter_model.safetensors"


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_an_iteration_is_the_same_in_every_placement(
    placement: str, undisturbed: RunOutcome, train: Train, tiny: Make
) -> None:
    """The first SFT is taken from the undisturbed run, the iteration is done again: a launch of workers takes long."""
    expected = undisturbed.report.parent
    folder = expected.parent / placement
    shutil.copytree(expected, folder)
    text = (folder / "config.yaml").read_text()
    for old, new in {"name: undisturbed": f"name: {placement}", **PLACEMENTS[placement]}.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / "config.yaml").write_text(text)
    for file in ("results.json", "metrics.jsonl", "report.html", "timeline.jsonl"):
        (folder / file).unlink()
    for stage in ("iteration-0", "evaluations/iteration-0"):
        shutil.rmtree(folder / stage)

    run = train if placement == "colocate" else train_selfplay  # sequential launches its engines in turn
    outcome = run(tiny(placement, *OVERRIDES[placement]))

    assert outcome.results == undisturbed.results
    for file in (ROLLOUTS, ADAPTER):
        assert (folder / "iteration-0" / file).read_bytes() == (expected / "iteration-0" / file).read_bytes(), file
    assert_no_overlap(folder)


def assert_no_overlap(folder: Path) -> None:
    """Decoders and workers take turns: spans of decoding and of training or embedding follow each other."""
    busy = sorted(
        (span.start_s, span.start_s + span.duration_s, span.name)
        for span in read_timeline(folder)
        if span.kind in {"decode", "compute"}
    )
    assert len(busy) == 4  # negatives, SFT, DPO, test rows
    for (_, end, name), (start, _, following) in pairwise(busy):
        assert end <= start + 0.1, (name, following)
