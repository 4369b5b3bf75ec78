"""Placement groups that nobody removes: those of a trial whose process was killed."""

from __future__ import annotations

import logging

import ray
from ray._private.state import state
from ray._raylet import PlacementGroupID
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.util.placement_group import PlacementGroup, remove_placement_group

logger = logging.getLogger(__name__)


def remove_orphaned_groups() -> int:
    """Remove the placement groups that a dead actor of this job made; returns how many.

    A placement group outlives the actor that made it until the job ends, with the CPUs and GPUs it reserves. No public
    call of Ray tells who made a placement group.
    """
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    removed = 0
    for info in map(PlacementGroupTableData.FromString, _placement_groups()):
        is_there = info.state != PlacementGroupTableData.REMOVED
        by_actor = bool(info.creator_actor_id) and not ray.ActorID(info.creator_actor_id).is_nil()  # else the driver
        if is_there and by_actor and info.creator_actor_dead and info.creator_job_id == job:
            remove_placement_group(PlacementGroup(PlacementGroupID(info.placement_group_id)))
            removed += 1
    if removed:
        logger.info("removed %d placement groups of a process that died", removed)
    return removed


def _placement_groups() -> list[bytes]:
    return list(state._connect_and_get_accessor().get_placement_group_table())
