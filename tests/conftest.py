"""Fixtures that several folders share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sprec_ray.cluster.engines.kept import KeptEngines
    from tests.fixture_types import Train

RAW = Path(__file__).parent / "assets" / "raw"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what needs Ray as slow, whether it says so or not, and say what shares engines or a Ray.

    Side by side (``-n 2``) tests of a group run in one process. The group on Ray is the longest and begins first, with
    the runs that the others compare theirs with; they come last.
    """
    groups = {item: _group(item) for item in items}
    for item, group in groups.items():
        if group == "ray":
            item.add_marker("slow")
        item.add_marker(pytest.mark.xdist_group(group))
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: (_RANK.get(groups[item].partition("/")[0], 1), "test_run.py" not in item.nodeid))


_RANK = {"ray": 0, "end_to_end": 2}


def _group(item: pytest.Item) -> str:
    folder, *rest = item.path.relative_to(Path(__file__).parent).parts
    if item.get_closest_marker("own_cluster") is not None:
        return f"{folder}/{rest[0]}"
    return "ray" if folder == "end_to_end" or "ray_session" in getattr(item, "fixturenames", ()) else folder


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
    """``train_selfplay`` with the kept engines; not for runs that fail, which would leave dead ones."""
    from sprec_ray.cluster.runs.run import train_selfplay

    return partial(train_selfplay, kept=kept)


@pytest.fixture
def raw() -> Path:
    """The hand-made raw files."""
    return RAW
