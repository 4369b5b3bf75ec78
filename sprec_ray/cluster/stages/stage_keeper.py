"""How a run does each of its stages once: marked on disk, shared with other runs, sent to remote storage."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sprec_ray.cluster.stages.sharing import SharedStages
from sprec_ray.config.run import RunConfig
from sprec_ray.storage.artifacts import Stage
from sprec_ray.storage.mirror import Mirror

logger = logging.getLogger(__name__)


class StageKeeper:
    """The stages of one run's folder. ``may_wait`` says whether another run may be waited for (see sharing.py)."""

    def __init__(self, config: RunConfig, folder: Path, mirror: Mirror, *, may_wait: Callable[[], bool]) -> None:
        self._folder, self._mirror, self._may_wait = folder, mirror, may_wait
        self._shared = SharedStages(config, folder)

    def is_done(self, stage: Stage) -> bool:
        """Whether a stage is on disk, be it from another run that shares its stages."""
        return stage.is_finished or self._shared.adopt(stage, may_wait=self._may_wait())

    @contextmanager
    def filling(self, stage: Stage, name: str) -> Iterator[dict[str, Any]]:
        """Fill a stage's folder inside the block and mark it as finished; yields the summary to fill."""
        stage.start()
        logger.info("%s", name)
        summary: dict[str, Any] = {}
        yield summary
        self.finish(stage, summary)

    def finish(self, stage: Stage, summary: Mapping[str, Any]) -> None:
        """Mark a stage as finished, offer it to other runs and send it to remote storage."""
        stage.finish(summary)
        self._shared.publish(stage)
        self._mirror.push(self._folder)

    def close(self) -> None:
        """Release the stages that were not finished to other runs."""
        self._shared.close()
