"""Engines that outlive a run: kept while their settings are the same, closed when they are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sprec_ray.cluster.engines.kept import KeptEngines


class Engine:
    def __init__(self) -> None:
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


def test_engines_are_launched_again_only_for_other_settings() -> None:
    kept = KeptEngines()
    launch: Callable[[], Any] = Engine
    first, decoders = kept.session("one worker", launch), kept.pool("exact", launch)
    assert kept.session("one worker", launch) is first
    second = kept.session("two workers", launch)
    assert (first.is_closed, second is not first) == (True, True)
    assert kept.pool("exact", launch) is decoders
    kept.close()
    assert (second.is_closed, decoders.is_closed) == (True, True)
    assert kept.pool("exact", launch) is not decoders
