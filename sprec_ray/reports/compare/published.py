"""Published tables, which published.yaml holds: SPRec's 1 and 2 (arXiv 2412.09243), DMPO's 2 (arXiv 2405.16127)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import yaml

SPREC_COLUMNS = ("div_ratio@1", "div_ratio@5", "or_ratio@1", "or_ratio@5", "mgu@1", "mgu@5", "hr@5", "ndcg@5")
"""The metrics of SPRec's tables, in their order."""

NAMES = {
    "sasrec": "SASRec",
    "gru4rec": "GRU4Rec",
    "bert4rec": "BERT4Rec",
    "stamp": "STAMP",
    "shan": "SHAN",
    "gcsan": "GCSAN",
    "core": "CORE",
    "tallrec": "TALLRec",
    "bigrec": "BIGRec",
    "rw": "RW",
    "d3": "D³",
    "dmpo": "DMPO",
    "s_dpo": "SDPO",
    "rosepo": "RosePO",
    "sprec": "SPRec",
    "sprec_nosft": "SPRec-noSFT",
    "sprec_nodpo": "SPRec-noDPO",
    "sprec_rn": "SPRec-RN",
}
"""By our method what the papers call it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedTable:
    """A paper's numbers for one dataset."""

    source: str
    dataset: str
    runs: str
    """What a number is of."""
    task: Literal["next_item", "pairs"]
    domain: str | None = None
    """``data.domain`` of the dataset's file, where it is one of several."""
    baseline: str
    """The method from which the others' differences are taken."""
    numbers: Mapping[str, Mapping[str, float]]
    """By method and metric."""
    unordered: tuple[str, ...] = ()
    """Methods that are shown for reference and are left out where the order of methods is compared."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The metrics, in the table's order."""
        return tuple(self.numbers[self.baseline])


def _read() -> dict[str, dict[str, Any]]:
    text = resources.files(__package__).joinpath("published.yaml").read_text(encoding="utf-8")
    tables: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return tables


_TABLES = _read()
PUBLISHED = tuple(_TABLES)
"""The datasets whose numbers are here."""


def published_table(dataset: str) -> PublishedTable:
    """The published numbers of a dataset of ``PUBLISHED``.

    >>> published_table("goodreads").numbers["bigrec"]["ndcg@5"]
    0.0236
    """
    table = dict(_TABLES[dataset])
    columns, unit = table.pop("columns"), table.pop("divided_by", 1)
    numbers = {
        name: {column: value / unit for column, value in zip(columns, values, strict=True)}
        for name, values in table.pop("numbers").items()
    }
    return PublishedTable(**table | {"numbers": numbers, "unordered": tuple(table.get("unordered", ()))})


def kendall_tau(first: list[float], second: list[float]) -> float:
    """Kendall's tau-a of two rankings: pairs ordered alike less pairs ordered otherwise, over all pairs.

    A pair that is equal on either side counts for neither. NaN with fewer than two places.

    >>> kendall_tau([1, 2, 3], [1, 3, 2])
    0.3333333333333333
    """
    places = range(len(first))
    pairs = [(i, j) for i in places for j in places if i < j]
    if not pairs:
        return math.nan
    signs = [_sign(first[i] - first[j]) * _sign(second[i] - second[j]) for i, j in pairs]
    return sum(signs) / len(pairs)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
