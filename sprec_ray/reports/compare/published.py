"""Published tables: SPRec's 1 and 2 (arXiv 2412.09243) and DMPO's 2 (arXiv 2405.16127)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

SPREC_COLUMNS = ("div_ratio@1", "div_ratio@5", "or_ratio@1", "or_ratio@5", "mgu@1", "mgu@5", "hr@5", "ndcg@5")
"""The metrics of SPRec's tables, in their order."""
_SPREC = "SPRec (arXiv 2412.09243), Tables 1 and 2"
_DMPO = "DMPO (arXiv 2405.16127), Table 2"

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


_SPREC_TABLES = {
    "movielens": """
        sasrec      0.0031 0.0029 1.0000 0.5520 0.1209 0.0473 0.0225 0.0136
        bigrec      0.1939 0.1604 0.2561 0.1047 0.0620 0.0406 0.0347 0.0281
        rw          0.1918 0.1541 0.2551 0.0990 0.0577 0.0405 0.0327 0.0276
        d3          0.1246 0.1000 0.3238 0.1440 0.0664 0.0502 0.0266 0.0197
        dmpo        0.1827 0.1494 0.2561 0.0827 0.0529 0.0317 0.0310 0.0264
        s_dpo       0.1816 0.1533 0.2449 0.0747 0.0462 0.0232 0.0310 0.0258
        rosepo      0.1857 0.1539 0.2378 0.0880 0.0538 0.0319 0.0290 0.0244
        sprec       0.2806 0.2257 0.1510 0.1033 0.0432 0.0346 0.0388 0.0319
        sprec_nosft 0.3020 0.2486 0.0837 0.0224 0.0198 0.0188 0.0184 0.0149
        sprec_nodpo 0.1959 0.1588 0.2714 0.1086 0.0637 0.0406 0.0316 0.0260
        sprec_rn    0.2194 0.1822 0.2224 0.0922 0.0544 0.0303 0.0286 0.0230
    """,
    "goodreads": """
        sasrec      0.0030 0.0022 1.0000 0.5994 0.0458 0.0270 0.0202 0.0139
        bigrec      0.1420 0.1002 0.3170 0.1174 0.0175 0.0164 0.0310 0.0236
        rw          0.1050 0.0820 0.3730 0.1338 0.0238 0.0270 0.0380 0.0281
        d3          0.1199 0.0857 0.2581 0.1034 0.0260 0.0255 0.0413 0.0324
        dmpo        0.1560 0.1138 0.3310 0.1270 0.0164 0.0149 0.0410 0.0314
        s_dpo       0.1580 0.1146 0.3270 0.1230 0.0161 0.0146 0.0420 0.0315
        rosepo      0.1860 0.1356 0.3230 0.1098 0.0181 0.0140 0.0300 0.0215
        sprec       0.2090 0.1472 0.2170 0.0678 0.0099 0.0165 0.0330 0.0250
        sprec_nosft 0.2010 0.1418 0.2390 0.0658 0.0044 0.0135 0.0270 0.0206
        sprec_nodpo 0.1350 0.0992 0.2970 0.0862 0.0142 0.0165 0.0350 0.0274
        sprec_rn    0.1380 0.1048 0.3380 0.1190 0.0188 0.0156 0.0420 0.0310
    """,
    "cds": """
        sasrec      0.0021 0.0055 1.0000 0.4855 0.1205 0.0622 0.0226 0.0170
        bigrec      0.3198 0.3031 0.2597 0.1016 0.0461 0.0169 0.0132 0.0130
        rw          0.2821 0.2646 0.2648 0.0971 0.0432 0.0305 0.0112 0.0103
        d3          0.3135 0.2968 0.2672 0.0748 0.0320 0.0252 0.0103 0.0088
        dmpo        0.3116 0.2886 0.1740 0.0582 0.0195 0.0160 0.0090 0.0090
        s_dpo       0.3218 0.3067 0.2118 0.0692 0.0380 0.0192 0.0110 0.0106
        rosepo      0.3625 nan    0.1853 0.0446 0.0426 0.0292 0.0090 0.0090
        sprec       0.3859 0.3682 0.1670 0.0534 0.0242 0.0245 0.0143 0.0140
        sprec_nosft 0.3381 0.3179 0.2373 0.0788 0.0216 0.0195 0.0132 0.0126
        sprec_nodpo 0.3136 0.2982 0.2363 0.0884 0.0333 0.0173 0.0143 0.0136
        sprec_rn    0.3625 0.3444 0.2536 0.1088 0.0359 0.0161 0.0163 0.0150
    """,
    "steam": """
        sasrec      0.0010 0.0018 1.0000 0.6000 0.1094 0.0421 0.0660 0.0379
        bigrec      0.1940 0.1768 0.3910 0.1812 0.0650 0.0289 0.0780 0.0766
        rw          0.2890 0.2550 0.2710 0.0984 0.0313 0.0229 0.0760 0.0735
        d3          0.1580 0.1414 0.4560 0.1896 0.0511 0.0320 0.0730 0.0718
        dmpo        0.2270 0.2062 0.2990 0.0918 0.0443 0.0333 0.0850 0.0834
        s_dpo       0.2080 0.1838 0.3510 0.0930 0.0475 0.0415 0.0820 0.0810
        rosepo      0.2310 0.2086 0.3160 0.1110 0.0499 0.0373 0.0820 0.0805
        sprec       0.2930 0.2612 0.2560 0.1116 0.0367 0.0237 0.0910 0.0893
        sprec_nosft 0.2900 0.2628 0.2260 0.0750 0.0173 0.0355 0.0880 0.0868
        sprec_nodpo 0.2220 0.2006 0.3910 0.1884 0.0620 0.0294 0.0790 0.0776
        sprec_rn    0.2860 0.2606 0.2530 0.1146 0.0351 0.0262 0.0860 0.0837
    """,
}
"""As printed. RosePO's DivRatio@5 on CDs and Vinyl cannot be read in the copy that was typed from: nan."""


_DMPO_NAMES = ("gcsan", "stamp", "sasrec", "gru4rec", "bert4rec", "shan", "core", "tallrec", "dmpo")
_DMPO_TABLES = {
    "dmpo-ml-1m": (52.77, 53.75, 54.77, 52.75, 47.72, 51.18, 50.32, 67.79, 70.20),
    "dmpo-amazon-movie": (51.07, 53.04, 49.05, 47.51, 50.17, 52.88, 49.55, 57.62, 66.60),
}
"""AUC times 100, as printed."""
_DMPO_DOMAINS = {"dmpo-ml-1m": "rec_data_ml_1m", "dmpo-amazon-movie": "rec_Amazon_Movie"}

_DATASETS = {
    "movielens": "MovieLens-10M",
    "goodreads": "Goodreads",
    "cds": "Amazon CDs and Vinyl",
    "steam": "Steam",
    "dmpo-ml-1m": "MovieLens-1M",
    "dmpo-amazon-movie": "Amazon Movies and TV",
}


def published_table(dataset: str) -> PublishedTable:
    """The published numbers of a dataset of ``PUBLISHED``.

    >>> published_table("goodreads").numbers["bigrec"]["ndcg@5"]
    0.0236
    """
    if dataset in _DMPO_TABLES:
        return PublishedTable(
            source=_DMPO,
            dataset=_DATASETS[dataset],
            runs="means of five seeds",
            task="pairs",
            domain=_DMPO_DOMAINS[dataset],
            baseline="tallrec",
            numbers={
                name: {"auc": value / 100} for name, value in zip(_DMPO_NAMES, _DMPO_TABLES[dataset], strict=True)
            },
        )
    rows = (line.split() for line in _SPREC_TABLES[dataset].strip().splitlines())
    return PublishedTable(
        source=_SPREC,
        dataset=_DATASETS[dataset],
        runs="one run per method",
        task="next_item",
        baseline="bigrec",
        numbers={name: dict(zip(SPREC_COLUMNS, map(float, numbers), strict=True)) for name, *numbers in rows},
        unordered=("sasrec",),
    )


PUBLISHED = tuple(_DATASETS)
"""The datasets whose numbers are here."""


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
