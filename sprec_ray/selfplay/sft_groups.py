"""Examples as rows of supervised training, all alike or weighted by genre (RW)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from sprec_ray.types import Example, PreferenceGroup


def sft_groups(examples: Sequence[Example], weights: Sequence[float] | None = None) -> list[PreferenceGroup]:
    """The examples as groups that reject nothing: what supervised training takes."""
    return [
        PreferenceGroup(
            example_id=example.example_id,
            history=example.history,
            chosen=example.target,
            rejected=(),
            candidates=example.candidates,
            weight=weight,
        )
        for example, weight in zip(examples, weights or [1.0] * len(examples), strict=True)
    ]


def genre_weights(examples: Sequence[Example], genres: Mapping[str, Sequence[str]]) -> list[float]:
    """The weight of each example in SFT (RW, IFairLRS, arXiv 2402.15215).

    W_g is the share of genre g among the genres of the histories' titles over its share among those of the targets; a
    title with several genres counts once for each. An example weighs the mean of W_g over its target's genres, and 1
    where they are unknown. Equal weights are BIGRec.

    Raises ValueError when no target has a genre, since all examples would weigh the same.
    """
    of_histories = _shares((title for example in examples for title in example.history), genres)
    of_targets = _shares((example.target for example in examples), genres)
    if not of_targets:
        raise ValueError(
            "sft.weighting=genre needs genres, and no training target has one; take a source with genres (for "
            "data.source=huggingface name data.genres_column), or set sft.weighting=none"
        )
    weights = []
    for example in examples:
        of_genres = [of_histories.get(genre, 0.0) / of_targets[genre] for genre in genres.get(example.target, ())]
        weights.append(sum(of_genres) / len(of_genres) if of_genres else 1.0)
    return weights


def _shares(titles: Iterable[str], genres: Mapping[str, Sequence[str]]) -> dict[str, float]:
    counts = Counter(genre for title in titles for genre in genres.get(title, ()))
    return {genre: count / counts.total() for genre, count in counts.items()}
