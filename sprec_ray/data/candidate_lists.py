"""The titles that a prompt lists to choose from: S-DPO's twenty candidates (arXiv 2406.09215, section 4.1)."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from sprec_ray.data.sequences import derive_rng
from sprec_ray.types import Example

logger = logging.getLogger(__name__)

_MANY = 10
"""Rows of which not all have their target at one place by chance."""


def with_candidates(examples: Sequence[Example], titles: Sequence[str], *, num: int, seed: int) -> tuple[Example, ...]:
    """The examples with ``num`` candidates each: the target and uniformly drawn titles outside the history, shuffled.

    They are drawn with a seed made of ``seed`` and ``example_id``, so a row has the same ones whatever rows are beside
    it. (The published rows are seeded by the target.) Candidates that a source gives are kept as they are.

    ``titles`` are distinct. Raises ValueError where they do not suffice, and for given candidates that are not ``num``
    distinct titles with the target among them.

    >>> row = Example(example_id="7:1", history=("Dune",), target="Emma")
    >>> with_candidates([row], ["Dune", "Emma", "Ulysses", "Ada"], num=3, seed=0)[0].candidates
    ('Ulysses', 'Emma', 'Ada')
    """
    _warn_of_one_place([example for example in examples if example.candidates])
    made = []
    for example in examples:
        if not example.candidates:
            example = dataclasses.replace(example, candidates=_draw(example, titles, num, seed))
        check_candidates(example, num=num)
        made.append(example)
    return tuple(made)


def check_candidates(example: Example, *, num: int) -> None:
    """Raise ValueError unless the example has ``num`` distinct candidates, the target among them."""
    candidates = example.candidates
    if len(candidates) != num:
        wrong = f"has {len(candidates)} candidates; set data.num_candidates={len(candidates)}, or remove them"
    elif len(set(candidates)) != num:
        twice = next(title for index, title in enumerate(candidates) if title in candidates[:index])
        wrong = f"lists the candidate {twice!r:.60} twice; mend its row or remove them"
    elif example.target not in candidates:
        wrong = f"lacks its target {example.target!r:.60} among its candidates; mend its row or remove them"
    else:
        return
    raise ValueError(f"the example {example.example_id} {wrong}")


def _warn_of_one_place(given: Sequence[Example]) -> None:
    places = {example.candidates.index(example.target) for example in given if example.target in example.candidates}
    if len(given) >= _MANY and len(places) == 1:
        logger.warning(
            "the target is candidate %d in each of %d rows, so a model learns the place and not the title; shuffle the "
            "candidates, or remove them to have them drawn",
            places.pop() + 1,
            len(given),
        )


def _draw(example: Example, titles: Sequence[str], num: int, seed: int) -> tuple[str, ...]:
    rng = derive_rng(seed, f"candidates/{example.example_id}")
    excluded = {*example.history, example.target}
    # Larger catalogues cannot run out, and this runs for every row.
    if len(titles) < num + len(excluded) and len(set(titles) - excluded) < num - 1:
        raise ValueError(
            f"the catalogue holds {len(set(titles) - excluded)} titles besides the target and the history of the "
            f"example {example.example_id}, which cannot give {num} candidates; lower data.num_candidates"
        )
    drawn = [example.target]
    while len(drawn) < num:
        title = titles[int(rng.integers(len(titles)))]
        if title not in excluded and title not in drawn:
            drawn.append(title)
    return tuple(drawn[index] for index in _order(rng, num))


def _order(rng: np.random.Generator, num: int) -> list[int]:
    order: list[int] = rng.permutation(num).tolist()
    return order
