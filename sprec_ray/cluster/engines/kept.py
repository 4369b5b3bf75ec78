"""Engines that stay alive after a run, for the next run of the same process that needs the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from sprec_ray.cluster.engines.decoder_pool import DecoderPool
from sprec_ray.cluster.engines.worker_group import TrainingSession


class KeptEngines:
    """At most one training group and one pool of decoders, each with what it was launched for.

    Launching both costs more than a short run computes. Runs take turns: the process runs one at a time.
    """

    def __init__(self) -> None:
        self._session: tuple[Hashable, TrainingSession] | None = None
        self._pool: tuple[Hashable, DecoderPool] | None = None

    def session(self, key: Hashable, make: Callable[[], TrainingSession]) -> TrainingSession:
        """The group that was launched for an equal ``key``; else the kept one is closed and ``make`` called."""
        if self._session is None or self._session[0] != key:
            before, self._session = self._session, None
            self._close(before)
            self._session = (key, make())
        return self._session[1]

    def pool(self, key: Hashable, make: Callable[[], DecoderPool]) -> DecoderPool:
        """The decoders that were launched for an equal ``key``; else the kept ones are closed and ``make`` called."""
        if self._pool is None or self._pool[0] != key:
            before, self._pool = self._pool, None
            self._close(before)
            self._pool = (key, make())
        return self._pool[1]

    def close(self) -> None:
        """Stop what is kept."""
        session, pool, self._session, self._pool = self._session, self._pool, None, None
        self._close(pool)
        self._close(session)

    @staticmethod
    def _close(kept: tuple[Hashable, Any] | None) -> None:
        if kept is not None:
            kept[1].close()
