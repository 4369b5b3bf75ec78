"""Where each framework may be imported, and the shape of the house. What may import what is import-linter's."""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

import sprec_ray

ROOT = Path(__file__).parents[1]
TORCH = ("torch", "transformers", "peft", "safetensors", "deepspeed", "vllm", "ray")
MOST_MODULES = 20
"""A folder with more is two folders."""
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
(TORCH_FREE,) = [
    contract["source_modules"] for contract in CONTRACTS if "torch" in contract.get("forbidden_modules", [])
]


def module_files() -> dict[str, Path]:
    """Paths of the package and the jobs by their place in the repository."""
    return {
        str(path.relative_to(ROOT)): path for folder in ("sprec_ray", "jobs") for path in (ROOT / folder).rglob("*.py")
    }


PACKAGES = sorted(
    name.removesuffix("/__init__.py").replace("/", ".") for name in module_files() if name.endswith("__init__.py")
)


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


def test_only_the_folder_of_the_vllm_decoder_imports_vllm() -> None:
    found = importers("vllm")
    assert found
    assert {name for name in found if not name.startswith("sprec_ray/decoding/engines/vllm/")} == set()


def test_only_the_engine_imports_deepspeed() -> None:
    assert importers("deepspeed") == {"sprec_ray/training/deepspeed_engine.py"}


def test_the_second_implementations_of_the_tests_are_not_imported() -> None:
    assert importers("trl") | importers("pytest") | importers("hypothesis") == set()


def test_importing_the_framework_free_modules_loads_no_framework() -> None:
    """Also by way of what they import, and with all of their modules, in a process of its own."""
    script = (
        "import importlib, pkgutil, sys\n"
        f"for name in {TORCH_FREE!r}:\n"
        "    module = importlib.import_module(name)\n"
        "    for found in pkgutil.walk_packages(getattr(module, '__path__', []), name + '.'):\n"
        "        importlib.import_module(found.name)\n"
        f"print(sorted(set({TORCH!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_the_layers_hold() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = grimp.build_graph("sprec_ray", "jobs", exclude_type_checking_imports=True, cache_dir=None)
    arrows = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert sum(map(len, arrows.values())) > 500
    graphlib.TopologicalSorter(arrows).prepare()  # raises CycleError, which names the circle


def test_no_folder_is_crowded() -> None:
    counts = Counter(path.parent for name, path in module_files().items() if not name.endswith("__init__.py"))
    assert {str(folder): count for folder, count in counts.items() if count > MOST_MODULES} == {}


def test_no_prefix_stands_in_for_a_folder() -> None:
    """Three modules of a folder that share a first word are a folder of their own."""
    words: dict[tuple[Path, str], list[str]] = defaultdict(list)
    for path in module_files().values():
        words[path.parent, path.stem.partition("_")[0]].append(path.stem)
    assert [names for (_, word), names in words.items() if word and len(names) > 2] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_lives_there_and_hands_on_names_that_exist(package: str) -> None:
    module = importlib.import_module(package)
    first = (module.__doc__ or "").partition("\n")[0]
    assert first.endswith("."), f"{package}: {first}"
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None
        assert name in dir(module)
    assert not hasattr(module, "a_name_that_is_not_there")


def test_the_notebook_interface_is_what_the_documents_say() -> None:
    assert set(sprec_ray.__all__) == {
        *("CatalogAnswer", "ConfigError", "RunConfig", "RunOutcome", "RunResults"),
        *("load_config", "read_run", "score_predictions", "search_catalog", "train_selfplay"),
    }
    assert all(getattr(sprec_ray, name).__doc__ for name in sprec_ray.__all__)
    document = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert [name for name in sprec_ray.__all__ if name not in document] == []
