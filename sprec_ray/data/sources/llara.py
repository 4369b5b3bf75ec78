"""LLaRA's rows, which S-DPO measures on: item ids in order, and the names of the items beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sprec_ray.config.data import DataConfig
from sprec_ray.data.sequences import derive_rng
from sprec_ray.data.sources.raw_files import data_folder, numbered_lines, read_json_rows, split_fields
from sprec_ray.data.sources.source import SourceData, one_line
from sprec_ray.types import Example, Item

_FILES = {"train": ("train",), "valid": ("val", "valid"), "test": ("test",)}
ROWS_PER_HELD_OUT_USER = 10
"""Of a held-out user at most: users have 4 to 986 rows, and a few would be most of the rows."""


class _Row(NamedTuple):
    """A row as titles, its history whole."""

    history: tuple[str, ...]
    target: str
    candidates: tuple[str, ...]


def read_llara(config: DataConfig) -> SourceData:
    """The examples and the titles of a folder in the format of LLaRA (arXiv 2312.02445).

    *Items.* ``id2name.txt`` with ``id::name`` lines; a name may hold ``::``. *Rows.* One file each whose name ends in
    ``train``, ``val`` (or ``valid``) and ``test`` and ``.jsonl``, plain or ``.gz``, of objects ``{"seq": [ids], "next":
    id}``; other keys are not read, but for ``candidates`` (ids, the target among them), which are kept where they are.
    The id after the last item's fills histories up to ten, and an empty one is ten of it: it is removed.

    Train holds every prefix of its users, user after user, and a row that does not continue the one before begins a
    user. Rows with fewer than ``data.min_history`` titles are dropped, the empty ones among them, as LLaRA drops those
    below three. ``example_id`` is ``train:<user>:<row>``, ``valid:<row>`` or ``test:<row>``, counted from 0.

    With ``data.held_out`` valid is made of train: that share of its users (at least one) is drawn by ``data.seed`` and
    taken out of it, and at most ten rows of each are kept. The published valid rows are then not read.

    Raises ValueError naming the file and the row for what cannot be read.
    """
    folder = data_folder(config)
    names = _read_names(folder / "id2name.txt")
    dropped: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    users = _users(_read_rows(folder, "train", names))
    held_out: list[int] = []
    if config.held_out:
        order = derive_rng(config.seed, "held-out users").permutation(len(users))
        held_out = sorted(order[: max(1, round(config.held_out * len(users)))].tolist())
        if len(held_out) == len(users):
            raise ValueError(f"data.held_out={config.held_out} leaves none of {len(users)} users to train on; lower it")
    kept_users = [user for user in range(len(users)) if user not in set(held_out)]
    splits = {"train": _examples({f"train:{user}": users[user] for user in kept_users}, config, dropped)}
    if held_out:
        found = [_examples({f"train:{user}": users[user]}, config, dropped) for user in held_out]
        splits["valid"] = tuple(example for rows in found for example in _some(rows, config.seed))
        noted["held_out_users"] = len(held_out)
        noted["held_out_rows_beyond_ten_of_a_user"] = sum(map(len, found)) - len(splits["valid"])
    else:
        splits["valid"] = _examples({"valid": _read_rows(folder, "valid", names)}, config, dropped)
    splits["test"] = _examples({"test": _read_rows(folder, "test", names)}, config, dropped)
    for name, rows in splits.items():
        if not rows:
            raise ValueError(
                f"{folder}: no {name} row has a history of {config.min_history} titles; lower data.min_history"
            )
    noted["target_in_history"] = sum(row.target in row.history for rows in splits.values() for row in rows)
    items = tuple(Item(item_id=str(number), title=title) for number, title in names.items())
    return SourceData(items=items, splits=splits, dropped=dict(dropped), noted=dict(+noted))


def _read_names(path: Path) -> dict[int, str]:
    if not path.is_file() and path.with_name(f"{path.name}.gz").is_file():
        path = path.with_name(f"{path.name}.gz")
    names: dict[int, str] = {}
    for number, line in numbered_lines(path):
        where = f"{path}, line {number}"
        raw, name = split_fields(line, "::", at_least=2, where=where)[0], line.partition("::")[2]
        if not raw.strip().isdecimal() or not name.strip():
            raise ValueError(f"{where}: expected id::name, found {line!r:.60}; mend the line")
        if int(raw) in names:
            raise ValueError(f"{where}: item {int(raw)} is named twice; remove one of the lines")
        names[int(raw)] = one_line(name)
    return names


def _find(folder: Path, split: str) -> Path:
    endings = tuple(f"{name}.jsonl{packed}" for name in _FILES[split] for packed in ("", ".gz"))
    found = sorted(path for path in folder.iterdir() if path.name.endswith(endings))
    if len(found) != 1:
        raise ValueError(
            f"{folder} holds {len(found)} files that end in {_FILES[split][0]}.jsonl[.gz], and needs one; set "
            "data.path=FOLDER to a folder of LLaRA's rows"
        )
    return found[0]


def _read_rows(folder: Path, split: str, names: Mapping[int, str]) -> list[_Row]:
    path = _find(folder, split)
    padding = max(names) + 1

    def title(value: Any, where: str) -> str:
        if type(value) is not int or value not in names:
            raise ValueError(f"{where}: {value!r} is no item of id2name.txt; mend the row or the names")
        return names[value]

    rows = []
    for number, row in enumerate(read_json_rows(path), start=1):
        where = f"{path}, row {number}"
        if not isinstance(row.get("seq"), list) or "next" not in row:
            raise ValueError(f"{where}: expected seq (a list of ids) and next (an id), found {', '.join(row)}")
        history = tuple(title(value, where) for value in row["seq"] if value != padding)
        candidates = tuple(title(value, where) for value in row.get("candidates", ()))
        rows.append(_Row(history, title(row["next"], where), candidates))
    return rows


def _users(rows: Sequence[_Row]) -> list[list[_Row]]:
    """The rows by user; a history holds at most the last ten titles, so its end is compared."""
    users: list[list[_Row]] = []
    for before, row in zip([None, *rows], rows, strict=False):
        goes_on = before is not None and bool(row.history) and row.history == _after(before)[-len(row.history) :]
        if not goes_on:
            users.append([])
        users[-1].append(row)
    return users


def _after(row: _Row) -> tuple[str, ...]:
    return (*row.history, row.target)


def _examples(rows_of: Mapping[str, Sequence[_Row]], config: DataConfig, dropped: Counter[str]) -> tuple[Example, ...]:
    examples = []
    for name, rows in rows_of.items():
        for number, row in enumerate(rows):
            if len(row.history) < config.min_history:
                dropped["history_too_short"] += 1
                continue
            history = row.history[-config.max_history :]
            examples.append(
                Example(example_id=f"{name}:{number}", history=history, target=row.target, candidates=row.candidates)
            )
    return tuple(examples)


def _some(rows: Sequence[Example], seed: int) -> list[Example]:
    """The rows of a held-out user that are kept, in their order."""
    if not rows:
        return []
    user = rows[0].example_id.rpartition(":")[0]
    drawn = derive_rng(seed, f"rows of {user}").permutation(len(rows))[:ROWS_PER_HELD_OUT_USER]
    return [rows[index] for index in sorted(drawn.tolist())]
