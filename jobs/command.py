"""What every job shares: logging, and how it ends: a user's mistake, Ctrl-C or a stopped Ray job."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

INTERRUPTED = "interrupted; the same command continues where this one stopped"


class Stopped(KeyboardInterrupt):
    """SIGTERM, which ``ray job stop``, Kubernetes and Slurm send before SIGKILL; it ends a job as Ctrl-C does."""


def run_job(main: Callable[[list[str]], None]) -> None:
    """Call ``main`` with the command line.

    A ValueError or OSError is the user's to mend: one line, exit code 2. Ctrl-C exits with 130 and SIGTERM with 143,
    after what was started is stopped; everything else keeps its traceback and exits with 1.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in ("ray", "transformers", "datasets", "httpx", "deepspeed", "filelock"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    signal.signal(signal.SIGTERM, _stop)
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped:
        sys.exit(143)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(130)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
    os.write(2, f"{INTERRUPTED}\n".encode())  # now: `ray job stop` kills what has not ended within 3 s
    raise Stopped
