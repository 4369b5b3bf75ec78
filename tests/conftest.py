"""Fixtures that several folders share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sprec_ray.cluster.engines.kept import KeptEngines
    from tests.fixture_types import Train

RAW = Path(__file__).parent / "assets" / "raw"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what needs Ray as slow, whether it says so or not."""
    if "ray_session" in getattr(item, "fixturenames", ()):
        item.add_marker("slow")


def group_of(nodeid: str) -> str:
    """Which of two processes runs a test, where they run side by side: each has a Ray with kept engines."""
    if "/clusters/" in nodeid:  # each file starts a Ray of its own
        return "runs" if "test_two_nodes" in nodeid or "test_killed_driver" in nodeid else "parts"
    return "runs" if "/end_to_end/" in nodeid else "parts"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Side by side the runs that others compare theirs with come first, and those others last."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: ("/clusters/" in item.nodeid, "/test_run.py" not in item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist=loadscope`` our groups; xdist's own loadgroup does not see groups under this pytest."""
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Groups(config, log)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for the whole test session; its CPUs are bookkeeping: two for kept engines, two for others."""
    import ray

    ray.init(
        num_cpus=4,
        include_dashboard=False,
        logging_level="WARNING",
        log_to_driver=False,
        object_store_memory=200 * 2**20,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def kept(ray_session: None) -> Iterator[KeptEngines]:
    """Engines that one run leaves to the next, as in a sweep: to launch them takes longer than these runs compute."""
    from sprec_ray.cluster.engines.kept import KeptEngines

    kept = KeptEngines()
    yield kept
    kept.close()


@pytest.fixture(scope="session")
def train(kept: KeptEngines) -> Train:
    """``train_selfplay`` with the kept engines; not for runs whose workers or decoders fail."""
    from sprec_ray.cluster.runs.run import train_selfplay

    return partial(train_selfplay, kept=kept)


@pytest.fixture
def raw() -> Path:
    """The hand-made raw files."""
    return RAW
