"""A run over two nodes: each holds a worker and a decoder, and one of them is lost in the middle of training.

Both are on this machine; where it allows network namespaces the second has a network of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sprec_ray.cluster.runs.results import read_results
from sprec_ray.storage.artifacts import MARKER, PARTIAL, read_json
from tests.end_to_end.clusters.ray_nodes import RayNodes, ray_nodes
from tests.end_to_end.conftest import LONG_SFT

pytestmark = pytest.mark.slow

# Three CPUs each: a worker takes two, a decoder one, so no node can hold two workers, nor a third process.
NODE = "--num-cpus=3"
TWO_NODES = [
    "training.num_workers=2",
    "training.cpus_per_worker=2",
    "training.max_failures=2",
    "training.save_steps=2",
    "decoding.num_decoders=2",
    "decoding.chunk_size=4",
]
ADAPTERS = ("sft", "iteration-0/sft", "iteration-0/preference")
NAMESPACE, CABLE, HEAD_IP, SECOND_IP = f"sprec{os.getpid()}", f"sprec{os.getpid()}", "10.99.0.1", "10.99.0.2"


@dataclass
class TwoNodes:
    """The cluster, and how its second node is started."""

    cluster: RayNodes
    start_second: Callable[[], subprocess.Popen[bytes]]
    second: subprocess.Popen[bytes]


def ip(*arguments: str) -> bool:
    return subprocess.run(["ip", *arguments], check=False, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def network() -> Iterator[bool]:
    """A second network, joined to this one by a pair of virtual cables; False where that is not permitted."""
    if not shutil.which("ip") or not ip("netns", "add", NAMESPACE):
        yield False
        return
    made = ip("link", "add", CABLE, "type", "veth", "peer", "name", CABLE, "netns", NAMESPACE) and all(
        [
            ip("addr", "add", f"{HEAD_IP}/24", "dev", CABLE),
            ip("link", "set", CABLE, "up"),
            ip("-n", NAMESPACE, "addr", "add", f"{SECOND_IP}/24", "dev", CABLE),
            ip("-n", NAMESPACE, "link", "set", CABLE, "up"),
            ip("-n", NAMESPACE, "link", "set", "lo", "up"),
        ]
    )
    yield made
    ip("netns", "del", NAMESPACE)  # and both ends of the cable


@pytest.fixture(scope="module", params=["namespaces", "loopback"])
def two_nodes(request: pytest.FixtureRequest, network: bool) -> Iterator[TwoNodes]:
    apart = request.param == "namespaces"
    if apart and not network:
        pytest.skip("network namespaces are not permitted here")
    if not apart and network:
        pytest.skip("the nodes have networks of their own, which covers this")
    # Gloo would take the address of the host name, which is the same on both sides.
    variables = {"GLOO_SOCKET_IFNAME": CABLE} if apart else {}
    with ray_nodes(NODE, host=HEAD_IP if apart else "127.0.0.1", **variables) as cluster:

        def start_second() -> subprocess.Popen[bytes]:
            options = [f"--node-ip-address={SECOND_IP}"] if apart else []
            return cluster.start(NODE, *options, namespace=NAMESPACE if apart else "")

        cluster.wait_for(1)
        nodes = TwoNodes(cluster, start_second, start_second())
        cluster.wait_for(2)
        yield nodes


def test_a_run_over_two_nodes_waits_for_one_that_was_lost_and_ends_as_if_nothing_had_happened(
    two_nodes: TwoNodes, tiny_file: Path, output_dir: Path, long_sft: Path, tmp_path: Path
) -> None:
    """One node cannot hold both workers: the run waits until a second node is there again.

    It ends as one worker and one decoder on one node, but for the order of summation (and dropout, which is off).
    """
    cluster, log = two_nodes.cluster, tmp_path / "log"
    arguments = [str(tiny_file), f"output_dir={output_dir}", *LONG_SFT]
    job = cluster.begin("jobs.train_selfplay", *arguments, *TWO_NODES, "name=lost", log=log)
    lost = output_dir / "lost"
    state = lost / "sft" / PARTIAL / "state.safetensors"
    deadline = time.monotonic() + 240
    while not state.exists():
        assert job.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)
    cluster.kill(two_nodes.second)
    cluster.wait_for(1)  # until the loss is known
    two_nodes.second = two_nodes.start_second()
    assert job.wait(timeout=400) == 0, log.read_text()[-3000:]
    for kind in ("training workers", "decoders"):
        places = re.findall(rf"{kind}: (.*)", log.read_text())[0]
        assert len(set(re.findall(r"CPU of [\d.]+ \((\w+)\)", places))) == 2, places
    assert read_json(lost / "sft" / MARKER)["summary"]["num_resumed_steps"] > 0
    for adapter in ADAPTERS:
        ours, theirs = (load_file(run / adapter / "adapter_model.safetensors") for run in (lost, long_sft))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4, msg=adapter)
    for ours, theirs in zip(read_results(lost), read_results(long_sft), strict=True):
        assert ours.metrics == pytest.approx(theirs.metrics, abs=1e-3, nan_ok=True)
