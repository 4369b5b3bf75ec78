"""Raw data to the files a run starts from; the windows of many users are made in parallel by Ray Data."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from sprec_ray.cluster.stages.prepare_pairs import prepare_pairs
from sprec_ray.config.data import DataConfig
from sprec_ray.config.run import ConfigError, RunConfig
from sprec_ray.data.candidate_lists import with_candidates
from sprec_ray.data.catalog import Catalog
from sprec_ray.data.sequences import Event, chronological_split, sample_examples, user_windows
from sprec_ray.data.sources import SOURCES
from sprec_ray.data.sources.source import SPLITS
from sprec_ray.storage.artifacts import write_json, write_rows
from sprec_ray.types import Example, Interaction, Item

logger = logging.getLogger(__name__)

# The progress logger warns that progress bars are off, which is what is asked for.
_LOG_LEVELS = {"ray.data": logging.WARNING, "ray.data._internal.progress": logging.ERROR}

_MIN_PARTITIONS, _ROWS_PER_PARTITION = 8, 50_000
_FEWEST_ROWS_FOR_RAY = 100_000
"""Below, starting Ray Data takes longer than the work."""
_WINDOWS = pa.schema(
    [
        ("example_id", pa.string()),
        ("history", pa.list_(pa.string())),
        ("target", pa.string()),
        ("timestamp", pa.float64()),
    ]
)


def prepare_data(config: DataConfig, *, out: Path, num_blocks: int | None = None) -> dict[str, int]:
    """Read the source, make and sample the splits, write them to ``out``, and return the counts.

    Written are ``train.jsonl``, ``valid.jsonl``, ``test.jsonl`` (Examples, in the order drawn), ``catalog.json`` and
    ``counts.json`` (what is returned): rows per split, ``available/<split>`` before sampling, ``missing/<split>`` short
    of what was asked, ``catalog`` titles, ``dropped/<reason>`` and ``noted/<reason>`` of the raw rows.

    The files are the same byte for byte whatever the number of blocks (``num_blocks``; Ray Data chooses by default) and
    CPUs, and with few rows, which are not worth Ray Data's start. Ray must be running. Raises ValueError with the
    remedy for data that cannot be used.
    """
    if config.task == "pairs":
        return prepare_pairs(config, out=out)
    source = SOURCES[config.source](config)
    catalog = Catalog.from_items(source.items)
    dropped = Counter(source.dropped)
    if source.splits is not None:
        splits = source.splits
    else:
        assert source.interactions is not None, "a source has interactions or splits"
        table = _event_table(source.interactions, source.items, config.min_interactions, dropped)
        splits = chronological_split(_make_windows(table, config, num_blocks), config.split)

    counts: dict[str, int] = {}
    for split, wanted in zip(SPLITS, (config.num_train, config.num_valid, config.num_test), strict=True):
        examples = sample_examples(splits[split], wanted, seed=config.seed, purpose=f"sample/{split}")
        if config.task == "candidates":
            examples = with_candidates(examples, catalog.titles, num=config.num_candidates, seed=config.seed)
        write_rows(out / f"{split}.jsonl", examples)
        counts[split] = len(examples)
        counts[f"available/{split}"] = len(splits[split])
        if len(examples) < wanted:
            counts[f"missing/{split}"] = wanted - len(examples)
            logger.warning("%s: %d examples of the %d asked for", split, len(examples), wanted)
        if split == "test":
            counts["test_target_not_in_catalog"] = sum(example.target not in catalog for example in examples)
    counts["catalog"] = len(catalog)
    counts |= {f"dropped/{reason}": number for reason, number in sorted(dropped.items())}
    counts |= {f"noted/{reason}": number for reason, number in sorted(source.noted.items())}
    catalog.write(out / "catalog.json")
    write_json(out / "counts.json", counts)
    return counts


def _event_table(
    interactions: Sequence[Interaction], items: Sequence[Item], min_interactions: int, dropped: Counter[str]
) -> pa.Table:
    """The interactions that can make windows, as a table; what cannot is counted in ``dropped``."""
    titles: dict[str, str] = {}
    for item in items:
        titles.setdefault(item.item_id, item.title)
    known = [row for row in interactions if row.item_id in titles]
    lengths = Counter(row.user_id for row in known)
    kept = [row for row in known if lengths[row.user_id] >= min_interactions]
    if len(known) < len(interactions):
        dropped["item_without_title"] += len(interactions) - len(known)
    if len(kept) < len(known):
        dropped["users_below_min_interactions"] += sum(length < min_interactions for length in lengths.values())
        dropped["interactions_of_these_users"] += len(known) - len(kept)
    if not kept:
        raise ValueError(
            f"no user has {min_interactions} interactions with a known title; lower data.min_interactions, or check "
            "that the items and the interactions belong together"
        )
    return pa.table(
        {
            "user_id": pa.array([row.user_id for row in kept], pa.string()),
            "title": pa.array([titles[row.item_id] for row in kept], pa.string()),
            "timestamp": pa.array([row.timestamp for row in kept], pa.float64()),
            "order": pa.array([row.order for row in kept], pa.int64()),
        }
    )


def _make_windows(table: pa.Table, config: DataConfig, num_blocks: int | None) -> list[Example]:
    """The windows of all users, in no particular order: the split sorts them by a key that no two share."""
    limits = {name: getattr(config, name) for name in ("min_interactions", "min_history", "max_history")}
    if num_blocks is None and table.num_rows < _FEWEST_ROWS_FOR_RAY:
        rows = _windows_of_users(table, **limits).to_pylist()
        return list(_examples([rows]))
    import ray.data  # takes the better part of a second

    with _quiet_ray_data():
        dataset = ray.data.from_arrow(table, override_num_blocks=num_blocks)
        # Ray Data would take 200 partitions, each a task that takes longer than the work of a small data set.
        partitions = max(_MIN_PARTITIONS, table.num_rows // _ROWS_PER_PARTITION)
        grouped = dataset.groupby("user_id", num_partitions=partitions)
        windows = grouped.map_groups(partial(_windows_of_users, **limits), batch_format="pyarrow")
        batches = windows.iter_batches(batch_size=None, batch_format="pyarrow")
        return list(_examples(batch.to_pylist() for batch in batches))


def _examples(batches: Iterable[list[dict[str, Any]]]) -> Iterator[Example]:
    shared: dict[str, str] = {}  # one text per title, however many windows hold it
    for batch in batches:
        for row in batch:
            row["history"] = tuple(shared.setdefault(title, title) for title in row["history"])
            row["target"] = shared.setdefault(row["target"], row["target"])
            yield Example(**row)


def _windows_of_users(table: pa.Table, **limits: int) -> pa.Table:
    """The windows of the users whose rows a table holds, one user or many."""
    events: dict[str, list[Event]] = {}
    for row in zip(*(table[name].to_pylist() for name in ("user_id", "timestamp", "order", "title")), strict=True):
        events.setdefault(str(row[0]), []).append(Event(*row[1:]))
    windows = [window for user, mine in events.items() for window in user_windows(user, mine, **limits)]
    return pa.table({name: [getattr(window, name) for window in windows] for name in _WINDOWS.names}, schema=_WINDOWS)


@contextlib.contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Without progress bars and the log of each execution plan; the settings are put back afterwards."""
    import ray.data

    context = ray.data.DataContext.get_current()
    bars = context.enable_progress_bars
    levels = {logging.getLogger(name): level for name, level in _LOG_LEVELS.items()}
    before = {data_logger: data_logger.level for data_logger in levels}
    context.enable_progress_bars = False
    for data_logger, level in levels.items():
        data_logger.setLevel(level)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        for data_logger, level in before.items():
            data_logger.setLevel(level)


def check_catalog(config: RunConfig, catalog: Catalog) -> None:
    """Raise ConfigError when more is asked of the catalogue than it holds."""
    # The target is no negative; a random replacement needs one title more that is not in the group yet.
    most = len(catalog) - 1 - (config.selfplay.random_ratio > 0)
    if config.selfplay.num_negatives > most:
        raise ConfigError(
            f"selfplay.num_negatives={config.selfplay.num_negatives} exceeds the {most} titles the catalogue "
            "holds besides the target; lower it"
        )
    if max(config.evaluation.k) > len(catalog):
        raise ConfigError(
            f"evaluation.k={max(config.evaluation.k)} exceeds the {len(catalog)} titles of the catalogue; lower it"
        )
    for phase in ("sft", "selfplay_sft"):
        if getattr(config, phase).weighting == "genre" and not any(catalog.genres.values()):
            raise ConfigError(
                f"{phase}.weighting=genre needs genres, and the catalogue has none; name data.genres_column where the "
                f"source has one, or set {phase}.weighting=none"
            )
