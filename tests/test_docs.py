"""The documents and the shipped configurations say what the code does."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from sprec_ray.config.load import config_to_dict, flatten, load_config
from sprec_ray.reports.paper import differences_from_paper

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").glob("*.yaml"))
PAIRS = [config for config in CONFIGS if "task: pairs" in (ROOT / config).read_text(encoding="utf-8")]
PRESETS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs" / "presets").glob("*.yaml"))


def test_the_tree_of_the_readme_lists_every_module() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Tree")[2]
    listed = {line.split()[0].rpartition("/")[2] for line in tree.splitlines() if line.strip()}
    folders = ("sprec_ray", "jobs", "benchmarks", "docs")
    files = [file for name in folders for file in (ROOT / name).rglob("*.*") if file.suffix in {".py", ".md"}]
    assert sorted(str(file.relative_to(ROOT)) for file in files if file.name not in listed | {"__init__.py"}) == []


def test_the_table_of_keys_is_the_generated_one() -> None:
    document = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    made = runpy.run_path(str(ROOT / "docs" / "make_configuration.py"))["render_document"](document)
    assert document == made, "run python docs/make_configuration.py"


@pytest.mark.parametrize(
    ("config", "preset"),
    # The presets are the settings of SPRec, which has several iterations; pairs have one.
    [(config, preset) for config in CONFIGS for preset in ["", *PRESETS] if not (preset and config in PAIRS)],
)
def test_every_shipped_configuration_loads(config: str, preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    load_config([config, *filter(None, [preset]), "data.path=folder"])


def test_the_paper_preset_differs_from_the_paper_in_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(["configs/goodreads.yaml", "configs/presets/paper.yaml", "data.path=folder"])
    assert differences_from_paper(flatten(config_to_dict(config))) == []


def test_the_reference_preset_differs_from_the_paper_in_the_reference_policy_and_its_greedy_negatives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(["configs/goodreads.yaml", "configs/presets/reference.yaml", "data.path=folder"])
    found = differences_from_paper(flatten(config_to_dict(config)))
    assert found == [("preference.reference", "post_sft", "pre_sft"), ("selfplay.negatives", "greedy", "beam")]


def test_the_reference_preset_takes_the_4_bit_weights_of_the_published_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    preset = ["configs/goodreads.yaml", "configs/presets/reference.yaml", "data.path=folder"]
    assert load_config([*preset, "model.quantization=nf4"]).model.quantization == "nf4"
    load_config([*preset, "training.gpus_per_worker=0", "decoding.gpus_per_decoder=0"])
