"""Where results are kept: a folder, or an address of ``pyarrow.fs`` such as ``s3://bucket/prefix``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

_SECRET_OPTIONS = frozenset({"access_key", "secret_key", "session_token", "access_token", "token", "password", "sig"})
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_remote(output_dir: str) -> bool:
    """Whether an ``output_dir`` is an address elsewhere, not a folder of this machine (``file://`` is one)."""
    return bool(_SCHEME.match(output_dir)) and not output_dir.startswith("file://")


def lasting(path: str) -> Path:
    """A path to write results to. A relative one of a Ray job, whose folder is temporary, is below ``~/sprec_ray``.

    >>> lasting("file:///data/runs")
    PosixPath('/data/runs')
    """
    here = Path(unquote(path.removeprefix("file://")) if path.startswith("file://") else path).expanduser()
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not here.is_absolute():
        return Path.home() / "sprec_ray" / here
    return here


def without_options(address: str) -> str:
    """An address as it is shown: without what follows the question mark, and without a slash at its end."""
    return address.partition("?")[0].rstrip("/")


def holds_credentials(text: str) -> bool:
    """Whether a text is an address with a secret inside, in front of the host or among its options.

    >>> holds_credentials("s3://KEY:SECRET@bucket/runs"), holds_credentials("hdfs://user@host:8020/runs")
    (True, False)
    """
    if not _SCHEME.match(text):
        return False
    # A secret may hold an unescaped slash, so all that is left of an @ is looked at; host:8020/x@y is a port.
    user, at, _ = text.partition("://")[2].partition("?")[0].rpartition("@")
    _, colon, secret = user.partition(":")
    if at and colon and not secret.partition("/")[0].isdigit():
        return "/" not in user.partition(":")[0]
    options = {name.lower() for name in parse_qs(urlsplit(text).query, keep_blank_values=True)}
    return bool(options & _SECRET_OPTIONS)
