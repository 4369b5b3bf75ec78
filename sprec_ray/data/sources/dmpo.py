"""The liked/disliked pairs that DMPO (arXiv 2405.16127) publishes: files named ``<domain>_..._ranking_....json``."""

from __future__ import annotations

import html
import re
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from sprec_ray.config.data import DataConfig
from sprec_ray.data.sources.raw_files import data_folder, find_file, read_json_rows, require_file
from sprec_ray.data.sources.source import SourceData, one_line
from sprec_ray.types import Item, PairExample

_FILE = re.compile(r"(?P<domain>.+)_(?:sft|dpo|eval)_ranking(?:_(?P<number>\d+))?\.json(?:\.gz)?")
_TITLE = "<Title:"


def read_dmpo(config: DataConfig) -> SourceData:
    """The rows of one domain of the folder ``data.path``, any file with or without ``.gz``.

    Train are the users of ``<domain>_dpo_ranking_<N>.json`` with the largest N there is (of ``_sft_ranking.json``
    without one), valid the users whom only the other training files hold, test the users of ``_eval_ranking.json``.
    A row is {instruction, input, output}: the instruction names the history and then two candidates, each as
    ``<Title:...>``, and the output, a text or a list of which the first text counts, names the candidates with the
    liked one first. Consecutive rows of one history and one liked title are one example with several disliked ones.

    Titles are unescaped (HTML) and trimmed, runs of spaces are one, and with ``data.cut_titles`` all is cut that stands
    after the first comma or bracket. A pair of equal titles is dropped.

    Raises ValueError naming file and row for what is not such a row, and listing the domains for one that is not there.
    """
    folder = data_folder(config)
    domain = _domain(folder, config.domain)
    reader = _Reader(cut=config.cut_titles)
    names = [f"{domain}_dpo_ranking_{number}.json" for number in _numbers(folder, domain)]
    names.append(f"{domain}_sft_ranking.json")
    found = [path for name in names if (path := find_file(folder, name))] or [require_file(folder, names[-1])]
    train, *others = (reader.examples(path, f"{domain}/train") for path in found)
    test = reader.examples(require_file(folder, f"{domain}_eval_ranking.json"), f"{domain}/test")
    seen = {example.history for example in (*train, *test)}
    valid: list[PairExample] = []
    for example in chain.from_iterable(others):
        if example.history not in seen:
            seen.add(example.history)
            valid.append(replace(example, example_id=f"{domain}/valid:{len(valid)}"))
    titles = dict.fromkeys(
        title for example in (*train, *valid, *test) for title in (*example.history, example.liked, *example.disliked)
    )
    return SourceData(
        items=tuple(Item(item_id=title, title=title) for title in titles),
        pairs={"train": tuple(train), "valid": tuple(valid), "test": tuple(test)},
        dropped=dict(reader.dropped),
        noted=dict(reader.noted),
    )


def _domain(folder: Path, wanted: str | None) -> str:
    found = sorted({match["domain"] for file in folder.iterdir() if (match := _FILE.fullmatch(file.name))})
    if not found:
        raise ValueError(f"{folder} holds no <domain>_eval_ranking.json; set data.path=FOLDER to DMPO's data folder")
    if wanted is None and len(found) > 1:
        raise ValueError(f"{folder} holds several data sets; set data.domain to one of {', '.join(found)}")
    if wanted is not None and wanted not in found:
        raise ValueError(f"{folder} holds no data set {wanted!r}; set data.domain to one of {', '.join(found)}")
    return wanted or found[0]


def _numbers(folder: Path, domain: str) -> list[int]:
    """The numbers of negatives that there are files of, the largest first."""
    matches = [_FILE.fullmatch(file.name) for file in folder.iterdir()]
    return sorted({int(m["number"]) for m in matches if m and m["domain"] == domain and m["number"]}, reverse=True)


class _Reader:
    """Reads files of rows and counts what it changes."""

    def __init__(self, *, cut: bool) -> None:
        self._cut = cut
        self.dropped: Counter[str] = Counter()
        self.noted: Counter[str] = Counter()

    def examples(self, path: Path, prefix: str) -> list[PairExample]:
        """The users of a file, in its order."""
        users: list[tuple[tuple[str, ...], str, list[tuple[str, bool]]]] = []
        for number, row in enumerate(read_json_rows(path, columns=("instruction",)), start=1):
            history, liked, disliked, liked_first = self._pair(row, f"{path}, row {number}")
            if liked == disliked:
                self.dropped["equal_titles"] += 1
                continue
            if not users or users[-1][:2] != (history, liked):
                users.append((history, liked, []))
            users[-1][2].append((disliked, liked_first))
            self.noted["candidate_in_history"] += liked in history or disliked in history
        return [
            PairExample(
                example_id=f"{prefix}:{number}",
                history=history,
                liked=liked,
                disliked=tuple(title for title, _ in pairs),
                liked_first=tuple(first for _, first in pairs),
            )
            for number, (history, liked, pairs) in enumerate(users)
        ]

    def _pair(self, row: dict[str, Any], where: str) -> tuple[tuple[str, ...], str, str, bool]:
        output = row.get("output")
        answer = output[0] if isinstance(output, list) and output else output
        named = _titles(row["instruction"])
        ranked = _titles(answer) if isinstance(answer, str) else []
        if len(named) < 2 or len(ranked) != 2 or sorted(ranked) != sorted(named[-2:]):
            raise ValueError(
                f"{where}: expected an instruction that ends with two candidates as <Title:...> and an output that "
                "names the same two, the liked one first; mend or fetch the file again"
            )
        liked, disliked = (self._clean(title) for title in ranked)
        return tuple(self._clean(title) for title in named[:-2]), liked, disliked, ranked == named[-2:]

    def _clean(self, title: str) -> str:
        plain = html.unescape(title)
        self.noted["title_unescaped"] += plain != title
        plain = re.sub(" {2,}", " ", one_line(plain)).strip()
        if self._cut:
            plain = re.split(r" *[,(]", plain, maxsplit=1)[0].strip() or plain
        return plain


def _titles(text: str) -> list[str]:
    """The titles that a text names as ``<Title:...>``; a title may hold a ``>``, and ends at the last one.

    >>> _titles(" <Title:Dune> ,  <Title: Emma > .")
    ['Dune', ' Emma ']
    """
    return [part[: part.rindex(">")] for part in text.split(_TITLE)[1:] if ">" in part]
