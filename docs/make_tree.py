"""Writes the tree in docs/tree.md from the first sentence of every file: ``python docs/make_tree.py``."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "tree.md"
BEGIN, END = "<!-- tree: python docs/make_tree.py -->\n```\n", "```\n<!-- end of tree -->\n"

FOLDERS = ("sprec_ray", "jobs", "tests", "configs", "benchmarks", "docs")
SUFFIXES = {".py", ".yaml", ".md"}
HIDDEN = {"__init__.py", "__pycache__", "assets"}
"""What is no line of its own: a package's sentence stands beside its folder, and raw test data are not listed."""

COLUMN = 34
LONGEST = 150
"""Characters of a sentence that are shown whole; of a longer one what stands before its first colon is."""
COMMAND = re.compile(r": ?(?=(?:python|pip|kubectl) )")


def render_tree() -> str:
    """A line per folder and file, folders after the files beside them."""
    return "\n".join(line.rstrip() for name in FOLDERS for line in _folder(ROOT / name, 0)) + "\n"


def render_document(text: str) -> str:
    """The document with its tree replaced."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + render_tree() + END + after


def first_sentence(path: Path) -> str:
    """What a file says of itself first: in its docstring, its comment, or the heading of a document."""
    text = path.read_text(encoding="utf-8")
    return shortened(READERS[path.suffix](text).replace("``", ""))


def shortened(text: str) -> str:
    """The first sentence without its full stop and its command, cut before its first colon where it is long.

    >>> shortened("Run a sweep (Fig. 5): python -m jobs.tune FILE. It is continued by the same command.")
    'Run a sweep (Fig. 5)'
    """
    sentence = re.split(r"\.(?=\s+[A-Z]|$)", text.strip(), maxsplit=1)[0]
    sentence = COMMAND.split(sentence, maxsplit=1)[0]
    return sentence if len(sentence) <= LONGEST else re.split(r":(?:\s|$)", sentence, maxsplit=1)[0]


def _folder(folder: Path, depth: int) -> Iterator[str]:
    """The lines of a folder. Of a folder of tests that mirrors one of the code its files are not listed."""
    mirrored = _mirrored(folder)
    yield _line(f"{folder.name}/", depth, f"tests of {mirrored}" if mirrored else _about_folder(folder))
    entries = sorted(entry for entry in folder.iterdir() if entry.name not in HIDDEN)
    for file in entries:
        if file.is_file() and file.suffix in SUFFIXES and not mirrored:
            yield _line(file.name, depth + 1, first_sentence(file))
    for entry in entries:
        if entry.is_dir() and any(file.suffix in SUFFIXES for file in entry.rglob("*.*")):  # git leaves caches behind
            yield from _folder(entry, depth + 1)


def _about_folder(folder: Path) -> str:
    init = folder / "__init__.py"
    return first_sentence(init) if init.is_file() else ""


def _mirrored(folder: Path) -> str:
    """The folder of code whose modules the files of a folder of tests are named after; empty for other folders."""
    parts = folder.relative_to(ROOT).parts
    if parts[0] != "tests" or len(parts) == 1:
        return ""
    found = (Path(parts[1]), Path("sprec_ray", *parts[1:]))
    return next((f"{code}/" for code in found if (ROOT / code).is_dir()), "")


def _line(name: str, depth: int, sentence: str) -> str:
    return f"{'  ' * depth + name:<{COLUMN}} {sentence}"


def _docstring(text: str) -> str:
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0].replace("\n", " ")


def _comment(text: str) -> str:
    """The comment at the head of a YAML file, as one line."""
    lines = text.splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return " ".join(line.removeprefix("#").strip() for line in lines[:end])


def _heading(text: str) -> str:
    return text.partition("\n")[0].removeprefix("# ")


READERS: dict[str, Callable[[str], str]] = {".py": _docstring, ".yaml": _comment, ".md": _heading}


if __name__ == "__main__":
    DOCUMENT.write_text(render_document(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
