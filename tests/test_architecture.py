"""Where each framework may be imported. The layers of the package are import-linter's (pyproject.toml)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TORCH = ("torch", "transformers", "peft", "safetensors", "deepspeed", "vllm", "ray")
WITHOUT_TORCH = (
    "sprec_ray.types",
    "sprec_ray.config",
    "sprec_ray.artifacts",
    "sprec_ray.selfplay.loop",
    "sprec_ray.selfplay.negatives",
    "sprec_ray.data.prompts",
    "sprec_ray.data.sources",
    "sprec_ray.data.sequences",
    "sprec_ray.data.catalog",
    "sprec_ray.evaluation.metrics",
    "sprec_ray.evaluation.report",
    "sprec_ray.evaluation.sweep_report",
    "sprec_ray.evaluation.compare_report",
)


def module_files() -> dict[str, Path]:
    """Paths of the package and the jobs by their place in the repository."""
    return {
        str(path.relative_to(ROOT)): path for folder in ("sprec_ray", "jobs") for path in (ROOT / folder).rglob("*.py")
    }


def imported(path: Path) -> Iterator[str]:
    """Full names of what a module imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield str(node.module)


def importers(framework: str) -> set[str]:
    return {
        name
        for name, path in module_files().items()
        if any(module.split(".")[0] == framework for module in imported(path))
    }


def test_only_cluster_and_jobs_import_ray() -> None:
    found = importers("ray")
    assert found
    assert {name for name in found if not name.startswith(("sprec_ray/cluster/", "jobs/"))} == set()


def test_only_the_vllm_decoder_imports_vllm() -> None:
    names = ("vllm_decoder", "vllm_engine", "vllm_tree")
    assert importers("vllm") == {f"sprec_ray/decoding/{name}.py" for name in names}


def test_only_the_engine_imports_deepspeed() -> None:
    assert importers("deepspeed") == {"sprec_ray/training/engine.py"}


def test_the_second_implementations_of_the_tests_are_not_imported() -> None:
    assert importers("trl") | importers("pytest") | importers("hypothesis") == set()


@pytest.mark.parametrize(
    "pattern",
    [
        "sprec_ray/types.py",
        "sprec_ray/config.py",
        "sprec_ray/config_sections.py",
        "sprec_ray/artifacts.py",
        "sprec_ray/selfplay/*.py",
        "sprec_ray/data/prompts.py",
        "sprec_ray/data/sources/*.py",
        "sprec_ray/evaluation/metrics.py",
        "sprec_ray/evaluation/report*.py",
        "sprec_ray/evaluation/sweep*.py",
        "sprec_ray/evaluation/compare*.py",
        "sprec_ray/config*.py",
    ],
)
def test_the_framework_free_modules_import_no_framework(pattern: str) -> None:
    paths = sorted(ROOT.glob(pattern))
    assert paths
    for path in paths:
        assert {module.split(".")[0] for module in imported(path)} & set(TORCH) == set(), path


def test_importing_the_framework_free_modules_loads_no_framework() -> None:
    """Also by way of what they import, in a process of its own."""
    script = (
        "import importlib, sys\n"
        f"for name in {WITHOUT_TORCH!r}: importlib.import_module(name)\n"
        f"print(sorted(set({TORCH!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_the_layers_hold() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
