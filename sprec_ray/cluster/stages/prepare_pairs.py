"""Raw data to the files of a run that tells liked from disliked titles (``data.task=pairs``)."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from pathlib import Path

from sprec_ray.config.data import DataConfig
from sprec_ray.data.catalog import Catalog
from sprec_ray.data.pair_examples import pairs_of_ratings, split_users
from sprec_ray.data.sequences import sample_examples
from sprec_ray.data.sources import SOURCES
from sprec_ray.data.sources.source import SourceData
from sprec_ray.storage.artifacts import write_json, write_rows
from sprec_ray.types import PairExample

logger = logging.getLogger(__name__)

Splits = dict[str, tuple[PairExample, ...]]


def prepare_pairs(config: DataConfig, *, out: Path) -> dict[str, int]:
    """Write ``train.jsonl``, ``valid.jsonl``, ``test.jsonl`` (PairExamples), ``catalog.json`` and ``counts.json``.

    The counts are those of ``prepare_data``. With ``data.test_path`` or ``data.test_domain`` the test rows are those
    that this other data would be tested on. The catalogue holds every title of the sources. Raises ValueError with the
    remedy for data that cannot be used.
    """
    source, splits, dropped = _read(config)
    items, noted = source.items, Counter(source.noted)
    if config.test_path is not None or config.test_domain is not None:
        other = dataclasses.replace(
            config, path=config.test_path or config.path, domain=config.test_domain or config.domain
        )
        target, elsewhere, _ = _read(other)
        splits["test"], items = elsewhere["test"], (*items, *target.items)
    counts: dict[str, int] = {}
    for split, wanted in (("train", config.num_train), ("valid", config.num_valid), ("test", config.num_test)):
        rows = sample_examples(splits[split], wanted, seed=config.seed, purpose=f"sample/{split}")
        write_rows(out / f"{split}.jsonl", rows)
        counts |= {split: len(rows), f"available/{split}": len(splits[split])}
        if len(rows) < wanted:
            counts[f"missing/{split}"] = wanted - len(rows)
            logger.warning("%s: %d users of the %d asked for", split, len(rows), wanted)
    catalog = Catalog.from_items(items)
    counts["catalog"] = len(catalog)
    counts |= {f"dropped/{reason}": number for reason, number in sorted(dropped.items()) if number}
    counts |= {f"noted/{reason}": number for reason, number in sorted(noted.items()) if number}
    catalog.write(out / "catalog.json")
    write_json(out / "counts.json", counts)
    return counts


def _read(config: DataConfig) -> tuple[SourceData, Splits, Counter[str]]:
    source = SOURCES[config.source](config)
    dropped = Counter(source.dropped)
    if source.pairs is not None:
        return source, dict(source.pairs), dropped
    assert source.interactions is not None, "the configuration demands a source with ratings or pairs"
    titles: dict[str, str] = {}
    for item in source.items:
        titles.setdefault(item.item_id, item.title)
    examples, unused = pairs_of_ratings(source.interactions, titles, config)
    sizes = {"train": config.num_train, "valid": config.num_valid, "test": config.num_test}
    return source, split_users(examples, sizes, seed=config.seed), dropped + Counter(unused)
