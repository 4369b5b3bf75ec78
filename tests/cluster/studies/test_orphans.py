"""What a process that died had reserved is free again."""

from __future__ import annotations

import time
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from sprec_ray.cluster.studies.orphans import remove_orphaned_groups

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("ray_session")
def test_groups_of_dead_actors_are_removed_and_no_others() -> None:
    class Reserving:
        """An actor that makes a placement group, as the process of a trial does."""

        def reserve(self) -> str:
            group = placement_group([{"CPU": 1}])
            ray.get(group.ready())
            return str(group.id.hex())

    own = placement_group([{"CPU": 0.5}])
    ray.get(own.ready())
    living: Any = ray.remote(num_cpus=0)(Reserving).remote()
    kept = ray.get(living.reserve.remote())
    remove_orphaned_groups()
    assert placement_group_table()[kept]["state"] == "CREATED"
    ray.kill(living)
    deadline = time.monotonic() + 30
    while not remove_orphaned_groups():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    while placement_group_table()[kept]["state"] != "REMOVED":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert placement_group_table(own)["state"] == "CREATED"
    remove_placement_group(own)
