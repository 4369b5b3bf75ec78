"""Scores a file of predictions in SPRec's format (arXiv 2412.09243) and writes the metrics with their counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sprec_ray.data.catalog import Catalog
from sprec_ray.data.sources.raw_files import read_json_value
from sprec_ray.evaluation.evaluate import (
    EvaluationTask,
    Ranking,
    evaluate_ranking,
    rank_by_embedding,
    rank_lists,
    recommendations,
)
from sprec_ray.evaluation.grounding import Embedder, sentence_embedder, text_to_ground
from sprec_ray.evaluation.prediction_file import (
    Predictions,
    named_file,
    read_popularity,
    read_predictions,
    read_sprec_catalog,
    resolve_title,
)
from sprec_ray.metrics.compute import compute_metrics
from sprec_ray.metrics.diversity import NUM_OVER_RECOMMENDED, recommendation_counts
from sprec_ray.types import EvalResult

BOTH = "grounded= replaces grounding, so embedding= would do nothing; pass one of them"
MOST_PLACES = 1000
"""Ready lists may be shorter than k, and so may a small catalogue; beyond this k is a slip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionScores:
    """What a file of predictions is worth."""

    result: EvalResult
    document: Mapping[str, Any]
    """Each metric under its name (``hr@5`` ...; None where it is undefined), ``valid``, ``counts``, ``genre_gaps``
    (GP - GH at k = 1), ``most_recommended`` per k, ``published`` (metrics whose denominators the published code takes
    differently, its way) and ``notes``."""


def score_predictions(
    predictions: str | Path,
    catalog: str | Path,
    *,
    grounded: str | Path | None = None,
    embedding: str | None = None,
    k: Sequence[int] = (1, 5),
) -> PredictionScores:
    """The metrics of a file of predictions in SPRec's format, each at every k.

    *predictions*: a JSON list or JSON lines of rows with ``input`` (the history as quoted titles), ``output`` (the
    target) and ``predict`` (a list of generated texts, of which the first counts). *catalog*: a folder with
    ``id2name.json`` and, for MGU and DGU, ``name2genre.json`` and ``genre_dict.json``, whose keys are the kept genres,
    and, for the popularity groups and ARP, ``popularity.json`` with the training events of each title.
    *grounded*: a JSON list with one list of titles per row, best first; replaces grounding. *embedding*: a folder of a
    causal language model or the name of a sentence-transformers model, which ranks the catalogue by distance to the
    generated title. Every file may be compressed as ``.gz``. Titles that are UTF-8 read as latin-1 are repaired where
    the repaired title is in the catalogue.

    Raises ValueError, in one line with the remedy, for everything a user can cause; files are checked before a model
    is loaded.
    """
    if grounded is not None and embedding is not None:
        raise ValueError(BOTH)
    if not k or not all(isinstance(place, int) and place > 0 for place in k):
        raise ValueError(f"k={k} must be whole numbers from 1, for example k=(1, 5)")
    ks, folder = tuple(sorted(set(k))), Path(catalog)
    titles, kept, notes = read_sprec_catalog(folder)
    popularity = read_popularity(folder)
    if not popularity:
        notes.append(f"Popularity groups and ARP are undefined: {catalog} holds no popularity.json.")
    if max(ks) > max(len(titles), MOST_PLACES):
        raise ValueError(f"k={max(ks)} exceeds the catalogue's {len(titles)} titles; ask for fewer places")
    rows = read_predictions(named_file("predictions", predictions), titles)
    task = EvaluationTask(
        targets=rows.targets,
        histories=rows.histories,
        catalog=titles,
        kept_genres=kept,
        popularity=popularity,
        ks=ks,
    )
    lists = None if grounded is None else _read_lists(named_file("grounded", grounded), rows, titles)
    ranking = _rank(lists, embedding, rows, task)
    result = evaluate_ranking("predictions", ranking, task, generated=rows.generated)
    published = compute_metrics(recommendations(ranking.ranked_BK, task), ks, rows="published")
    return PredictionScores(result=result, document=_document(result, published, ranking, rows, task, notes))


def _rank(
    lists: Sequence[Sequence[str]] | None, embedding: str | None, predictions: Predictions, task: EvaluationTask
) -> Ranking:
    if lists is not None:
        return rank_lists(lists, task)
    texts = [text_to_ground(text) for text in predictions.generated]
    num_foreign = sum(text not in task.catalog for text in texts)
    if max(task.ks) > len(task.catalog):
        raise ValueError(f"k={max(task.ks)} exceeds the catalogue's {len(task.catalog)} titles; pass a smaller k")
    if embedding is not None:
        return rank_by_embedding(predictions.generated, task, _load_embedder(embedding))
    if num_foreign or max(task.ks) > 1:
        raise ValueError(
            f"{num_foreign} of {len(texts)} generated titles are not in the catalogue and k={max(task.ks)}, so texts "
            "must be grounded: pass embedding=MODEL_OR_PATH, or grounded=FILE with a list of titles per row"
        )
    return rank_lists([[text] for text in texts], task)


def _read_lists(path: Path, predictions: Predictions, catalog: Catalog) -> list[list[str]]:
    lists = read_json_value(path)
    if not isinstance(lists, list):
        raise ValueError(f"{path}: expected a list with one list of titles per row, found {type(lists).__name__}")
    if len(lists) != len(predictions.targets):
        raise ValueError(
            f"grounded={path} has {len(lists)} rows and the predictions have {len(predictions.targets)}; "
            "both need one per test row"
        )
    for number, titles in enumerate(lists, start=1):
        if not isinstance(titles, list) or not all(isinstance(title, str) for title in titles):
            raise ValueError(f"{path}, row {number}: expected a list of titles")
    return [[resolve_title(title, catalog) for title in titles] for titles in lists]


def _load_embedder(name: str) -> Embedder:
    """A folder of a causal language model, else what sentence-transformers makes of the name."""
    folder = Path(name)
    load: Callable[[str], Embedder] = sentence_embedder
    if (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        load = _causal_embedder
    elif folder.is_dir() and not (folder / "modules.json").is_file():
        raise ValueError(f"embedding={name} holds no config.json; pass the folder of a transformers model")
    try:
        return load(name)
    except OSError as error:
        raise ValueError(f"embedding={name} could not be loaded: {str(error).strip().splitlines()[0]}") from None


def _causal_embedder(name: str) -> Embedder:
    # Imported here: scoring ready lists needs neither torch nor transformers.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sprec_ray.evaluation.embedding import embed_texts

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(device)
    return lambda texts: embed_texts(model, tokenizer, texts)


def _document(
    result: EvalResult,
    published: Mapping[str, float],
    ranking: Ranking,
    predictions: Predictions,
    task: EvaluationTask,
    notes: Sequence[str],
) -> dict[str, Any]:
    most_recommended = {
        f"@{k}": [
            {"title": ranking.names[index], "count": count}
            for index, count in recommendation_counts(ranking.ranked_BK, k=k)[:NUM_OVER_RECOMMENDED]
        ]
        for k in task.ks
    }
    return {
        **{name: _null(value) for name, value in result.metrics.items()},
        "counts": {**result.counts, **predictions.counts, "num_catalog_titles": len(task.catalog)},
        "most_recommended": most_recommended,
        "genre_gaps": {genre: _null(gap) for genre, gap in result.genre_gaps.items()},
        "published": {
            name: _null(value)
            for name, value in published.items()
            if result.metrics[name] != value and not math.isnan(value)
        },
        "notes": list(notes),
    }


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value
