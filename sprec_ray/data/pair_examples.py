"""Ratings to pairs: a liked title of a user beside disliked ones (the protocol of DMPO, arXiv 2405.16127)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from sprec_ray.config.data import DataConfig
from sprec_ray.data.sequences import derive_rng
from sprec_ray.data.sources.source import SPLITS
from sprec_ray.types import Interaction, JudgementGroup, PairExample

YES, NO = "Yes.", "No."


def pairs_of_ratings(
    interactions: Sequence[Interaction], titles: Mapping[str, str], config: DataConfig
) -> tuple[list[PairExample], dict[str, int]]:
    """One example per user with enough ratings, by user, and how many users were dropped and why.

    The last ``data.max_history`` rated titles of a user count, by (time, row); of a title that is rated twice the last
    rating. A user needs ``data.min_judged`` liked ones (rated above ``data.liked_above``) and as many others among
    them. The last liked title is the candidate, the liked ones before it are the history, and ``data.min_judged`` of
    the others, drawn without replacement, are what it is to be told from. The sizes of the published histories (4 to
    36 titles of at most 40) say that they hold the liked titles alone; which liked title is the candidate they do not.
    """
    events: dict[str, list[Interaction]] = {}
    dropped: Counter[str] = Counter()
    for row in interactions:
        if row.rating is None or row.item_id not in titles:
            dropped["rating_missing" if row.rating is None else "item_without_title"] += 1
        else:
            events.setdefault(row.user_id, []).append(row)
    examples = []
    for user in sorted(events):
        ordered = sorted(events[user], key=lambda row: (row.timestamp, row.order))
        last = {titles[row.item_id]: (index, row.rating or 0.0) for index, row in enumerate(ordered)}
        rated = sorted(last, key=lambda title: last[title][0])[-config.max_history :]
        liked = [title for title in rated if last[title][1] > config.liked_above]
        others = [title for title in rated if last[title][1] <= config.liked_above]
        if min(len(liked), len(others)) < config.min_judged:
            dropped["users_below_min_judged"] += 1
            continue
        rng = derive_rng(config.seed, f"pairs/{user}")
        drawn = rng.permutation(len(others))[: config.min_judged].tolist()
        first = rng.random(config.min_judged) < 0.5
        examples.append(
            PairExample(
                example_id=user,
                history=tuple(liked[:-1]),
                liked=liked[-1],
                disliked=tuple(others[index] for index in drawn),
                liked_first=tuple(first.tolist()),
            )
        )
    if not examples:
        raise ValueError(
            f"no user of {len(events)} has {config.min_judged} liked and {config.min_judged} disliked titles among the "
            f"last {config.max_history} rated ones (liked is a rating above {config.liked_above:g}); lower "
            "data.min_judged, raise data.max_history or change data.liked_above"
        )
    return examples, dict(dropped)


def split_users(
    examples: Sequence[PairExample], sizes: Mapping[str, int], *, seed: int
) -> dict[str, tuple[PairExample, ...]]:
    """Users as ``train``, ``valid`` and ``test``, drawn without replacement: no user is in two of them.

    Test users are drawn first and then validation users, so that more training users leave both as they are; only
    where there are too few users for all three do test and validation give way, each to its share of ``sizes``.
    """
    ordered = sorted(examples, key=lambda example: example.example_id)
    drawn = [ordered[index] for index in derive_rng(seed, "split/users").permutation(len(ordered))]
    total = sum(sizes.values())
    counts = {name: size if total <= len(drawn) else max(1, size * len(drawn) // total) for name, size in sizes.items()}
    splits, first = {}, 0
    for name in ("test", "valid", "train"):
        splits[name] = tuple(drawn[first : first + counts[name]])
        first += counts[name]
    empty = [name for name in SPLITS if not splits[name]]
    if empty:
        raise ValueError(
            f"{len(drawn)} users are too few to split; the {empty[0]} split is empty: lower data.min_judged"
        )
    return {name: splits[name] for name in SPLITS}


def ranking_group(example: PairExample, num_negatives: int) -> JudgementGroup:
    """The right answer to the first prompt, and the wrong answer to each of the first ``num_negatives`` prompts.

    Prompt j names the liked title and disliked title j; its right answer lists the liked one first. These are y_w given
    x and y_l,j given x_j of arXiv 2405.16127 eq. 3.

    >>> ranking_group(PairExample(example_id="7", history=(), liked="A", disliked=("B", "C"),
    ...                           liked_first=(True, False)), 2).answers
    (('A', 'B'), ('B', 'A'), ('C', 'A'))
    """
    prompts = [_named(example, index) for index in range(num_negatives)]
    wrong = [(title, example.liked) for title in example.disliked[:num_negatives]]
    return JudgementGroup(
        example_id=example.example_id,
        history=example.history,
        candidates=(prompts[0], *prompts),
        answers=((example.liked, example.disliked[0]), *wrong),
    )


def pretraining_groups(examples: Sequence[PairExample], titles: Sequence[str], *, seed: int) -> list[JudgementGroup]:
    """The texts that the small Llama learns to read pairs from, none of which says which title is liked.

    Of every training prompt one answer that names its two titles in an order drawn at random: so it learns the
    histories, and to repeat the titles, and no preference. And the titles of the catalogue two by two in made-up
    prompts, whose history is three titles drawn uniformly: so it can repeat the titles that it is tested with.
    Histories and candidates of validation and test rows are not among the texts.
    """
    rng = derive_rng(seed, "pre-training pairs")
    groups = []

    def add(name: str, history: tuple[str, ...], pair: tuple[str, str]) -> None:
        answer = pair if rng.random() < 0.5 else (pair[1], pair[0])
        groups.append(JudgementGroup(example_id=name, history=history, candidates=(pair,), answers=(answer,)))

    for example in sorted(examples, key=lambda example: example.example_id):
        for index in range(len(example.disliked)):
            add(f"{example.example_id}/{index}", example.history, _named(example, index))
    drawn = [titles[index] for index in rng.permutation(len(titles))]
    for index in range(0, len(drawn) - 1, 2):
        beside = tuple(titles[other] for other in rng.integers(len(titles), size=3))
        add(f"titles/{index}", beside, (drawn[index], drawn[index + 1]))
    return groups


def first_answer(group: JudgementGroup) -> JudgementGroup:
    """The group with its right answer alone: a row of supervised training."""
    return JudgementGroup(
        example_id=group.example_id,
        history=group.history,
        candidates=group.candidates[:1],
        answers=group.answers[:1],
    )


def yes_no_groups(example: PairExample) -> tuple[JudgementGroup, JudgementGroup]:
    """Both titles of the first pair, each with the right word and then the wrong one (TALLRec, arXiv 2305.00447)."""
    liked, disliked = (
        JudgementGroup(
            example_id=f"{example.example_id}/{suffix}",
            history=example.history,
            candidates=((title,), (title,)),
            answers=((right,), (wrong,)),
        )
        for suffix, title, right, wrong in (
            ("liked", example.liked, YES, NO),
            ("disliked", example.disliked[0], NO, YES),
        )
    )
    return liked, disliked


def _named(example: PairExample, index: int) -> tuple[str, str]:
    """The two titles of a prompt, in the order in which it names them."""
    pair = example.liked, example.disliked[index]
    return pair if example.liked_first[index] else (pair[1], pair[0])
