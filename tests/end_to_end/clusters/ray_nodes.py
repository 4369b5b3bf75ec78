"""Ray nodes on this machine as processes of their own, and jobs that are run on them as a user runs them."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
COMMON = ["--disable-usage-stats", f"--object-store-memory={100 * 2**20}"]
SOON_MISSED = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
"""A node that was lost is known to be lost within seconds."""
RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class RayNodes:
    """A head and what joined it. Every process is in a session of its own, so that a node dies as a machine does."""

    environment: dict[str, str]
    address: str
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    def start(self, *options: str, namespace: str = "") -> subprocess.Popen[bytes]:
        """Start a node, in a network namespace where one is named: the first is the head."""
        folder = tempfile.mkdtemp(prefix="ray-")  # short: Ray puts sockets in it
        within = ["ip", "netns", "exec", namespace] if namespace else []
        role = [f"--address={self.address}"]
        if not self.nodes:
            host, _, port = self.address.partition(":")
            role = ["--head", f"--port={port}", f"--node-ip-address={host}", f"--temp-dir={folder}"]
            role.append("--include-dashboard=false")
        with Path(folder, "node.log").open("wb") as log:
            node = subprocess.Popen(
                [*within, RAY, "start", "--block", *role, *options, *COMMON],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.nodes.append(node)
        self.folders.append(folder)
        return node

    def wait_for(self, count: int, timeout_s: float = 90) -> None:
        """Wait until as many nodes are alive."""
        script = (
            "import ray, sys, time\n"
            "ray.init(log_to_driver=False, logging_level='ERROR')\n"
            f"end = time.monotonic() + {timeout_s}\n"
            f"while sum(node['Alive'] for node in ray.nodes()) != {count}:\n"
            "    time.sleep(0.2)\n"
            "    time.monotonic() < end or sys.exit(1)\n"
        )
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:  # a head that is not up yet refuses the first attempts
            command = [sys.executable, "-c", script]
            if not subprocess.run(command, env=self.environment, capture_output=True, check=False).returncode:
                return
        logs = [Path(folder, "node.log").read_text()[-1000:] for folder in self.folders]
        raise TimeoutError(f"{count} nodes were not there after {timeout_s} s: {logs}")

    def run(self, module: str, *arguments: str, timeout_s: float = 500) -> subprocess.CompletedProcess[str]:
        """Run a job to its end on the cluster."""
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=REPOSITORY,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def begin(self, module: str, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
        """Start a job and return at once; it logs into a file."""
        with log.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=REPOSITORY,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """End a node and all that runs on it at once, as a loss of power does."""
        kill_tree(node.pid)
        node.wait()
        self.nodes.remove(node)

    def close(self) -> None:
        """End the nodes, the head last."""
        for node in reversed(self.nodes[:]):
            self.kill(node)
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)


def kill_tree(pid: int) -> None:
    """Kill a process and its descendants, parents first, so that none is started again."""
    import psutil

    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


@contextmanager
def ray_nodes(*head_options: str, host: str = "127.0.0.1", **variables: str) -> Iterator[RayNodes]:
    """A cluster of its own, with a token; ``variables`` are added to the environment of jobs and nodes."""
    address = f"{host}:{free_port()}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    environment |= {"RAY_ADDRESS": address, **SOON_MISSED, **variables}
    nodes = RayNodes(environment, address)
    nodes.start(*head_options)
    try:
        yield nodes
    finally:
        nodes.close()
