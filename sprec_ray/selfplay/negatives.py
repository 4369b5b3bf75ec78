"""Rejected titles: the policy's own answers, drawn ones, ones like the target, mixtures; and an oracle's smoothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sprec_ray.types import Example, PreferenceGroup, Rollout

_LARGEST_SMOOTHING = 0.499


def self_play_groups(
    examples: Sequence[Example],
    rollouts: Mapping[str, Rollout],
    *,
    num_negatives: int,
    parse: Callable[[str], str | None],
    titles: frozenset[str],
    exclude_history: bool = False,
) -> tuple[list[PreferenceGroup], dict[str, int]]:
    """Groups whose rejected titles are the policy's own most probable answers, and the counts of all beams.

    arXiv 2412.09243 section 5.4.2: of the 2N beams, duplicates are dropped and the N most probable kept. The target
    is dropped too (the published code trains on pairs whose two sides are equal), and so are answers that are no
    quoted title, and with ``exclude_history`` the titles of the history. Titles outside the catalogue are kept, since
    the policy did predict them, and counted.
    An example with fewer than N titles left gives a short group, one with none gives no group.
    """
    counts = dict.fromkeys(
        (
            "beams",
            "invalid",
            "out_of_catalog",
            "equal_to_target",
            "in_history",
            "duplicate",
            "short_groups",
            "no_group",
        ),
        0,
    )
    counts["top_equal_to_target"] = counts["top_invalid"] = 0
    groups: list[PreferenceGroup] = []
    for example in examples:
        rejected: list[str] = []
        seen: set[str] = set()
        history = frozenset(example.history)
        for place, hypothesis in enumerate(rollouts[example.example_id].hypotheses):
            title = parse(hypothesis.text)
            counts["beams"] += 1
            if title is None or not hypothesis.finished:
                counts["invalid"] += 1
                counts["top_invalid"] += place == 0
            elif title in seen:
                counts["duplicate"] += 1
            elif example.target in (title, *hypothesis.same_tokens):
                counts["equal_to_target"] += 1
                counts["top_equal_to_target"] += place == 0
            elif exclude_history and not history.isdisjoint((title, *hypothesis.same_tokens)):
                counts["in_history"] += 1
            else:
                counts["out_of_catalog"] += title not in titles
                rejected.append(title)
            if title is not None and hypothesis.finished:
                seen.add(title)
        _append_group(groups, example, rejected[:num_negatives], num_negatives, counts)
    return groups, counts


def _append_group(
    groups: list[PreferenceGroup], example: Example, rejected: Sequence[str], wanted: int, counts: dict[str, int]
) -> None:
    if not rejected:
        counts["no_group"] += 1
        return
    counts["short_groups"] += len(rejected) < wanted
    groups.append(_group(example, rejected))


def _group(example: Example, rejected: Sequence[str]) -> PreferenceGroup:
    return PreferenceGroup(
        example_id=example.example_id,
        history=example.history,
        chosen=example.target,
        rejected=tuple(rejected),
        candidates=example.candidates,
    )


def drawn_groups(
    examples: Sequence[Example],
    *,
    num_negatives: int,
    titles: Sequence[str],
    rng: np.random.Generator,
    shares: npt.NDArray[np.float64] | None = None,
) -> list[PreferenceGroup]:
    """Groups with N distinct titles drawn from the catalogue, the target excluded.

    Uniformly (ablation RN; DPO, S-DPO and DMPO), or by ``shares``, the probabilities of the titles (the popular
    negatives of RosePO, arXiv 2410.12519).
    """
    return [_group(example, _draw(titles, num_negatives, {example.target}, rng, shares)) for example in examples]


def similar_groups(
    examples: Sequence[Example], neighbours: Mapping[str, Sequence[str]], *, num_negatives: int
) -> list[PreferenceGroup]:
    """Groups with the N titles most like the target (semantic negatives of RosePO, arXiv 2410.12519).

    ``neighbours`` gives for each target the titles most like it, best first, at least N without itself.
    """
    return [
        _group(example, [title for title in neighbours[example.target] if title != example.target][:num_negatives])
        for example in examples
    ]


def smoothing_of(
    group: PreferenceGroup, scores_I: npt.NDArray[np.float32], index_of: Callable[[str], int | None]
) -> float:
    """P(the rejected title is really preferred to the chosen one) by an oracle's scores of the catalogue, in [0, 0.5).

    RosePO (arXiv 2410.12519) predicts it by a preference oracle; as in Bradley-Terry it is the logistic function of the
    difference of scores. Beyond one half the label would be turned round, so it is cut there. A title outside the
    catalogue, of which the oracle knows nothing, gives 0.
    """
    chosen, rejected = index_of(group.chosen), index_of(group.rejected[0])
    if chosen is None or rejected is None:
        return 0.0
    difference = float(scores_I[chosen]) - float(scores_I[rejected])
    return min(1 / (1 + float(np.exp(min(difference, 700.0)))), _LARGEST_SMOOTHING)


def mix_random(
    groups: Sequence[PreferenceGroup], *, ratio: float, titles: Sequence[str], rng: np.random.Generator
) -> list[PreferenceGroup]:
    """The groups with ``ratio`` of all rejected titles replaced by uniformly drawn ones (section 5.4.1).

    They are drawn from the titles that the prompt lists, else from ``titles``.
    """
    slots = [(row, place) for row, group in enumerate(groups) for place in range(len(group.rejected))]
    chosen = rng.permutation(len(slots))[: round(ratio * len(slots))]
    rejected = [list(group.rejected) for group in groups]
    for slot in sorted(int(index) for index in chosen):
        row, place = slots[slot]
        taken = {groups[row].chosen, *rejected[row]}
        rejected[row][place] = _draw(groups[row].candidates or titles, 1, taken, rng)[0]
    return [
        dataclasses.replace(group, rejected=tuple(titles_of_row))
        for group, titles_of_row in zip(groups, rejected, strict=True)
    ]


def _draw(
    titles: Sequence[str],
    count: int,
    excluded: set[str],
    rng: np.random.Generator,
    shares: npt.NDArray[np.float64] | None = None,
) -> tuple[str, ...]:
    # Larger catalogues cannot run out, and this runs for every group.
    num_possible = len(titles) if shares is None else int(np.count_nonzero(shares))
    if num_possible < count + len(excluded):
        possible = titles if shares is None else [titles[place] for place in np.flatnonzero(shares)]
        if len(set(possible) - excluded) < count:
            raise ValueError(
                f"{len(possible)} titles, {len(excluded)} of them excluded, cannot give {count} negatives; "
                "lower selfplay.num_negatives"
            )
    drawn: list[str] = []
    while len(drawn) < count:
        place = int(rng.integers(len(titles))) if shares is None else int(rng.choice(len(titles), p=shares))
        title = titles[place]
        if title not in excluded and title not in drawn:
            drawn.append(title)
    return tuple(drawn)
