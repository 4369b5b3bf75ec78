"""From decoded rollouts to preference groups: which of the policy's own answers become rejected titles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sprec_ray.types import Example, PreferenceGroup, Rollout


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
    groups.append(
        PreferenceGroup(
            example_id=example.example_id, history=example.history, chosen=example.target, rejected=tuple(rejected)
        )
    )


def random_groups(
    examples: Sequence[Example], *, num_negatives: int, titles: Sequence[str], rng: np.random.Generator
) -> list[PreferenceGroup]:
    """Groups with N distinct titles drawn uniformly from the catalogue, the target excluded (ablation RN)."""
    return [
        PreferenceGroup(
            example_id=example.example_id,
            history=example.history,
            chosen=example.target,
            rejected=_draw(titles, num_negatives, {example.target}, rng),
        )
        for example in examples
    ]


def mix_random(
    groups: Sequence[PreferenceGroup], *, ratio: float, titles: Sequence[str], rng: np.random.Generator
) -> list[PreferenceGroup]:
    """The groups with ``ratio`` of all rejected titles replaced by uniformly drawn ones (section 5.4.1)."""
    slots = [(row, place) for row, group in enumerate(groups) for place in range(len(group.rejected))]
    chosen = rng.permutation(len(slots))[: round(ratio * len(slots))]
    rejected = [list(group.rejected) for group in groups]
    for slot in sorted(int(index) for index in chosen):
        row, place = slots[slot]
        taken = {groups[row].chosen, *rejected[row]}
        rejected[row][place] = _draw(titles, 1, taken, rng)[0]
    return [
        PreferenceGroup(
            example_id=group.example_id, history=group.history, chosen=group.chosen, rejected=tuple(titles_of_row)
        )
        for group, titles_of_row in zip(groups, rejected, strict=True)
    ]


def _draw(titles: Sequence[str], count: int, excluded: set[str], rng: np.random.Generator) -> tuple[str, ...]:
    # Larger catalogues cannot run out, and this runs for every group.
    if len(titles) < count + len(excluded) and len(set(titles) - excluded) < count:
        raise ValueError(
            f"{len(titles)} titles, {len(excluded)} of them excluded, cannot give {count} negatives; "
            "lower selfplay.num_negatives"
        )
    drawn: list[str] = []
    while len(drawn) < count:
        title = titles[int(rng.integers(len(titles)))]
        if title not in excluded and title not in drawn:
            drawn.append(title)
    return tuple(drawn)
