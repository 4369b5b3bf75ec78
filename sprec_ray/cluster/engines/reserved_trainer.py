"""Ray Train on CPUs and GPUs that the run reserves itself, whatever becomes of Train's controller.

A placement group that an actor makes while its job ends is never removed: Ray looks for the groups of a job once, when
it ends, and the actor lives a moment longer. So the workers' group is not left to the controller, which is an actor.
(The process of a sweep's or comparison's trial is one too: there the moment remains, at every launch.)
"""

from __future__ import annotations

from typing import Any

import ray
import ray.train.torch
from ray._common.constants import RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import ENABLE_PREEMPTION_WATCHER_ENV_VAR, get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class _Reservation(DefaultPlacementGroupHandle):  # type: ignore[misc]
    def shutdown(self) -> None:
        """Nothing: the next workers of the run take the same places."""


class _WorkerGroup(WorkerGroup):  # type: ignore[misc]
    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> _Reservation:
        return _Reservation(self._train_run_context.train_loop_config["reserved"])


class _TrainController(TrainController):  # type: ignore[misc]
    worker_group_cls = _WorkerGroup


class ReservedTrainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]
    """A TorchTrainer whose workers take the places of ``reserved``, a bundle a worker, and leave them reserved.

    ``controller`` is Train's actor once ``fit`` has asked for it; killing it ends the workers and ``fit``.
    """

    controller: Any = None

    def __init__(self, *args: Any, reserved: PlacementGroup, train_loop_config: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, train_loop_config={**train_loop_config, "reserved": reserved}, **kwargs)

    def _create_default_callbacks(self) -> list[Any]:
        """Without Train's watcher over its own groups: detached, it outlives the job when the controller is killed.

        And without its manager of data sets, of which there are none: a process whose imports cost seconds of a launch.
        """
        callbacks: list[Any] = super()._create_default_callbacks()
        idle = (PlacementGroupCleanerCallback, DatasetsCallback)
        return [callback for callback in callbacks if not isinstance(callback, idle)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # It waits for what it starts inside its event loop, which Ray would warn of. No worker asks whether a node is
        # about to be taken away, and the process that watches for it imports torch beside the workers.
        environment = {
            RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR: "0",
            ENABLE_PREEMPTION_WATCHER_ENV_VAR: "0",
            **get_env_vars_to_propagate(),
        }
        actor = ray.remote(_TrainController).options(
            num_cpus=0, scheduling_strategy=here, runtime_env={"env_vars": environment}
        )
        self.controller = actor.remote(**arguments)
        ray.get(self.controller.run.remote())
        return ray.get(self.controller.get_result.remote())
