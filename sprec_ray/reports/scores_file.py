"""The scores of a file of predictions: what ``jobs.score_predictions`` is told, writes and prints."""

from __future__ import annotations

from collections.abc import Sequence

from sprec_ray.config.addresses import lasting
from sprec_ray.evaluation.predictions import BOTH, score_predictions
from sprec_ray.reports.tables import format_table
from sprec_ray.storage.artifacts import write_json

USAGE = "predictions=FILE catalog=DIR [grounded=FILE] [embedding=MODEL_OR_PATH] [k=1,5] out=FILE"
_KEYS = ("predictions", "catalog", "grounded", "embedding", "k", "out")


def write_scores(arguments: Sequence[str]) -> str:
    """Score what a command line names (``USAGE``), write the document to ``out``; returns the same figures as text."""
    options = _parse(arguments)
    ks = _places(options.get("k", "1,5"))
    out = lasting(options["out"])
    if out.is_dir():
        raise ValueError(f"out={out} is a folder; name a file, for example out={out / 'metrics.json'}")
    scores = score_predictions(
        options["predictions"],
        options["catalog"],
        grounded=options.get("grounded"),
        embedding=options.get("embedding"),
        k=ks,
    )
    write_json(out, scores.document)
    return (
        format_table([scores.result]) + "".join(f"{note}\n" for note in scores.document["notes"]) + f"Written to {out}"
    )


def _parse(arguments: Sequence[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in _KEYS or not value:
            raise ValueError(f"{argument!r} is not an argument; usage: {USAGE}")
        options[key] = value
    for key in ("predictions", "catalog", "out"):
        if key not in options:
            raise ValueError(f"{key}= is missing; usage: {USAGE}")
    if "grounded" in options and "embedding" in options:  # before what follows is looked at
        raise ValueError(BOTH)
    return options


def _places(text: str) -> tuple[int, ...]:
    parts = text.strip("[]()").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"k={text} must be whole numbers from 1, separated by commas, for example k=1,5")
    return tuple(sorted({int(part) for part in parts}))
