"""Every shipped file loads, and nothing that can be configured is without effect."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sprec_ray.config.load import load_config
from sprec_ray.config.run import RunConfig

ROOT = Path(__file__).parents[1]
OTHERS = [
    ROOT / "configs" / name for name in ("clusters", "sweeps")
]  # not of runs: test_cluster_files, tests/config/test_sweep.py
FILES = sorted(path for path in (ROOT / "configs").rglob("*.y*ml") if path.parent not in OTHERS)


def test_files_are_shipped() -> None:
    assert ROOT / "configs" / "demo.yaml" in FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_shipped_file_loads(path: Path) -> None:
    """Overlays change something below them; a data set's folder is the user's to name."""
    below = [str(path.parents[1] / path.name)] if path.parent.name == "reference" else []
    if path.name == "tallrec.yaml":
        below = [str(ROOT / "configs" / "dmpo-ml-1m.yaml")]
    assert load_config([*below, str(path), "data.path=x"]) != load_config([*below, "data.path=x"])


def test_demo_needs_nothing_else() -> None:
    assert load_config([str(ROOT / "configs" / "demo.yaml")]).data.path is None


def fields_of(section: Any, prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def attributes_read() -> set[str]:
    """Names read as ``x.name`` anywhere in the package but its configuration."""
    names = set()
    for path in (ROOT / "sprec_ray").rglob("*.py"):
        if ROOT / "sprec_ray" / "config" not in path.parents:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    names.add(node.attr)
    return names


def test_every_configuration_field_is_read_somewhere() -> None:
    read = attributes_read()
    assert [key for key in fields_of(RunConfig()) if key.rsplit(".", 1)[-1] not in read] == []
