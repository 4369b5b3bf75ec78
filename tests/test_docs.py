"""The documents and the shipped configurations say what the code does."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

import sprec_ray
from sprec_ray.config.load import config_to_dict, flatten, load_config
from sprec_ray.config.run import RunConfig
from sprec_ray.reports.paper import differences_from_paper

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").glob("*.yaml"))
PAIRS = [config for config in CONFIGS if "task: pairs" in (ROOT / config).read_text(encoding="utf-8")]
PRESETS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs" / "presets").glob("*.yaml"))

DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))
)
FOLDERS = ("sprec_ray", "tests", "jobs", "configs", "benchmarks", "docs")
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(rf"(?<![\w/<>.~-])(?:{'|'.join(FOLDERS)})/[\w./*-]*")
FILE_AND_NAME = re.compile(r"([\w/.-]+\.py)(?:: ([\w.]+))?")
LEAST_QUESTIONS = 25


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def prose_of(document: str) -> str:
    """The text without its blocks of code."""
    return FENCED.sub("", text_of(document))


def anchors_of(file: Path) -> set[str]:
    """The anchors that a Markdown page gives its headings: lower case, without punctuation, spaces as hyphens."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", file.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def found_at(name: str) -> Path | None:
    """What a document means by a path: seen from the repository, else from the package."""
    return next((path for path in (ROOT / name, ROOT / "sprec_ray" / name) if path.exists()), None)


@cache
def names_of(file: Path) -> frozenset[str]:
    """What a module defines, and what its classes do, as ``Class.name``."""
    return frozenset(_defined(ast.parse(file.read_text(encoding="utf-8")).body))


def _defined(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield prefix + node.name
            case ast.ClassDef():
                yield prefix + node.name
                yield from _defined(node.body, f"{prefix}{node.name}.")
            case ast.Assign():
                yield from (prefix + target.id for target in node.targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name()):
                yield prefix + node.target.id


def named_files(document: str) -> list[tuple[str, str]]:
    """Every ``file.py`` and ``file.py: name`` between backticks, with an empty name for the former."""
    matches = (FILE_AND_NAME.fullmatch(span) for span in SPAN.findall(prose_of(document)))
    return [(match[1], match[2] or "") for match in matches if match]


@pytest.mark.parametrize(
    ("document", "most_words", "most_lines"), [("README.md", 1800, 250), ("docs/architecture.md", 1800, 250)]
)
def test_what_a_reader_starts_with_is_short(document: str, most_words: int, most_lines: int) -> None:
    text = text_of(document)
    assert len(text.split()) <= most_words
    assert len(text.splitlines()) <= most_lines


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_to_a_file_and_a_heading(document: str) -> None:
    dead = []
    for link in LINK.findall(prose_of(document)):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        file = (ROOT / document).parent / name if name else ROOT / document
        if not file.is_file() or (anchor and anchor not in anchors_of(file)):
            dead.append(link)
    assert dead == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_of_the_repository_exists(document: str) -> None:
    """Paths in commands and blocks too; of ``configs/methods/<name>.yaml`` the folder."""
    named = {match.rstrip(".") for match in PATH.findall(text_of(document))}
    assert sorted(name for name in named if not (any(ROOT.glob(name)) if "*" in name else (ROOT / name).exists())) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_and_function_exists(document: str) -> None:
    wrong = []
    for name, defined in named_files(document):
        file = found_at(name)
        if file is None or (defined and defined not in names_of(file)):
            wrong.append(f"{name}: {defined}")
    assert wrong == []


def test_the_index_by_question_names_a_file_in_every_answer() -> None:
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", text_of("docs/where.md"), re.MULTILINE)
    answers = {question: answer for question, answer in rows if question not in {"question", "what"}}
    assert len([question for question in answers if question.endswith("?")]) >= LEAST_QUESTIONS
    assert [question for question, answer in answers.items() if not PATH.search(answer)] == []
    odd = [span for answer in answers.values() for span in SPAN.findall(answer) if not _is_checked(span)]
    assert odd == []


def _is_checked(span: str) -> bool:
    """Whether another test looks it up: a file with or without a name, or a path."""
    return FILE_AND_NAME.fullmatch(span) is not None or PATH.fullmatch(span) is not None


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_names_a_job_or_benchmark_that_exists(document: str) -> None:
    modules = re.findall(r"python -m ((?:jobs|benchmarks)\.\w+)|`(jobs\.\w+)`", text_of(document))
    names = {first or second for first, second in modules}
    assert sorted(name for name in names if not (ROOT / f"{name.replace('.', '/')}.py").is_file()) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_setting_is_a_key_of_the_configuration(document: str) -> None:
    keys = flatten(config_to_dict(RunConfig()))
    sections = {key.rpartition(".")[0] for key in keys if "." in key}
    dotted = re.compile(rf"(?<![\w/.:-])((?:{'|'.join(sections)})(?:\.[a-z_]+)+)(?![\w/(])")
    code = [*FENCED.findall(text_of(document)), *SPAN.findall(prose_of(document))]
    named = {key for block in code for key in dotted.findall(block)}
    files = {key for key in named if key.rpartition(".")[2] in {"py", "md", "yaml", "json", "jsonl"}}
    assert sorted(key for key in named - files if key not in keys and key not in sections) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_python_example_imports_what_exists(document: str) -> None:
    """Modules are read, not imported: some of them would load Ray."""
    wrong = []
    for block in re.findall(r"^```python\n(.*?)^```$", text_of(document), re.DOTALL | re.MULTILINE):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("sprec_ray."):
                file = ROOT / f"{str(node.module).replace('.', '/')}.py"
                defined = names_of(file) if file.is_file() else frozenset()
                wrong += [f"{node.module}: {name.name}" for name in node.names if name.name not in defined]
    assert wrong == []


@pytest.mark.parametrize(
    ("document", "script", "remedy"),
    [("docs/configuration.md", "docs/make_configuration.py", "table"), ("docs/tree.md", "docs/make_tree.py", "tree")],
)
def test_what_is_generated_is_up_to_date(document: str, script: str, remedy: str) -> None:
    made = runpy.run_path(str(ROOT / script))["render_document"](text_of(document))
    assert text_of(document) == made, f"the {remedy} is old: run python {script}"


def test_every_file_of_the_tree_says_what_it_is() -> None:
    tree = text_of("docs/tree.md").partition("```\n")[2].partition("```")[0]
    bare = [line.strip() for line in tree.splitlines() if len(line.split()) == 1 and not line.strip().endswith("/")]
    assert bare == []


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", sprec_ray.__version__)
    assert citation["license"] == "Apache-2.0"
    assert "Apache License" in text_of("LICENSE")
    cited = {one["identifiers"][0]["value"].removeprefix("arXiv:") for one in citation["references"]}
    assert [paper for paper in cited if f"arXiv {paper}" not in text_of("README.md")] == []


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
