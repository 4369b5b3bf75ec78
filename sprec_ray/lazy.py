"""How packages hand on names of their modules: each module is imported when one of its names is asked for.

Importing a package must not import torch, Ray or vLLM for one who wants a name that needs none of them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def hand_on(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], tuple[str, ...]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` (PEP 562) of a package that hands on these names of its modules.

    ``modules`` holds by module, named from the package on, the names of it, with spaces between.
    """
    home = {name: f"{package}.{module}" for module, names in modules.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(home[name]), name)

    return get, lambda: sorted({*vars(sys.modules[package]), *home}), tuple(sorted(home))
