"""What every job shares: logging, and a user's mistake as one line with exit code 2."""

import logging
import os
import sys
from collections.abc import Callable


def run_job(main: Callable[[list[str]], None]) -> None:
    """Call ``main`` with the command line.

    A ValueError or OSError is the user's to mend: one line, exit code 2. Ctrl-C exits with 130; everything else keeps
    its traceback.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in ("ray", "transformers", "datasets", "httpx", "deepspeed", "filelock"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command continues after the last finished stage", file=sys.stderr)
        sys.exit(130)
