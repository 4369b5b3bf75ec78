"""Rejected titles from a prompt's own candidates: the negatives of S-DPO (arXiv 2406.09215, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

from sprec_ray.data.sequences import derive_rng
from sprec_ray.types import Example, PreferenceGroup


def candidate_groups(
    examples: Sequence[Example], *, num_negatives: int, seed: int, iteration: int
) -> list[PreferenceGroup]:
    """Groups with N of each example's other candidates, uniformly drawn without replacement.

    A row's draw depends on ``seed``, ``iteration`` and its ``example_id`` alone, and fewer negatives are the beginning
    of more, so that runs with another N differ in nothing else. Raises ValueError for an example with fewer.
    """
    groups = []
    for example in examples:
        others = [title for title in example.candidates if title != example.target]
        if len(others) < num_negatives:
            raise ValueError(
                f"the example {example.example_id} has {len(others)} candidates besides its target, fewer than "
                f"selfplay.num_negatives={num_negatives}; lower it or raise data.num_candidates"
            )
        order = derive_rng(seed, f"candidate negatives/{iteration}/{example.example_id}").permutation(len(others))
        groups.append(
            PreferenceGroup(
                example_id=example.example_id,
                history=example.history,
                chosen=example.target,
                rejected=tuple(others[index] for index in order[:num_negatives].tolist()),
                candidates=example.candidates,
            )
        )
    return groups
