"""Ray for a run: the cluster that is there, or one of its own."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

import ray


def init_ray(*, num_cpus: int) -> bool:
    """Connect to the cluster of ``RAY_ADDRESS`` or ``ray start``, else start one here; returns whether it was started.

    A cluster that another script started with ``ray.init()`` is left alone: it ends with that script.
    """
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    on_stop = signal.getsignal(signal.SIGTERM)
    try:
        # One CPU more than the engines hold, and at least what there is: Ray Data needs some while they wait.
        ray.init(num_cpus=num_cpus, include_dashboard=False, **quiet)
    except ValueError:  # how Ray says that there is a cluster to connect to, whose size is not ours to set
        ray.init(**quiet)
        return False
    finally:
        if callable(on_stop) and threading.current_thread() is threading.main_thread():
            # Ray puts its own handler there, which ends the process without closing anything.
            signal.signal(signal.SIGTERM, on_stop)
    return True
