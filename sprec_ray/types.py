"""The values that cross a folder: frozen dataclasses, no framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One raw catalogue entry. Several items may share a title; text alone cannot tell them apart."""

    item_id: str
    title: str
    genres: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """One user-item event. Events of a user are ordered by ``(timestamp, order)``; ``order`` is the raw row number."""

    user_id: str
    item_id: str
    timestamp: float
    order: int
    rating: float | None = None
    """Stars that the user gave; None where the source has none, or it was not asked for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A history and the next item, as titles, oldest first.

    ``Example(example_id="7:12", history=("Dune", "Emma"), target="Ulysses", timestamp=881250949.0)``
    """

    example_id: str
    history: tuple[str, ...]
    target: str
    timestamp: float = 0.0
    candidates: tuple[str, ...] = ()
    """Titles that the prompt lists, the target among them; empty where any title may be the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairExample:
    """What a user liked, oldest first, one more liked title, and disliked titles, each to be told from it.

    ``PairExample(example_id="7", history=("Dune", "Emma"), liked="Ulysses", disliked=("It", "Cujo"),
    liked_first=(True, False))``: the first prompt names Ulysses and It, the second Cujo and Ulysses.
    """

    example_id: str
    history: tuple[str, ...]
    liked: str
    disliked: tuple[str, ...]
    liked_first: tuple[bool, ...]
    """Whether the prompt names the liked title first, for each disliked one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgementGroup:
    """Answers about titles that prompts name, the right answer first; every answer has its own prompt."""

    example_id: str
    history: tuple[str, ...]
    candidates: tuple[tuple[str, ...], ...]
    """Per answer the titles its prompt names: two to rank, or one to say Yes. or No. to."""
    answers: tuple[tuple[str, ...], ...]
    """Per answer its titles in order, or the one word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """One decoded response.

    ``text`` is what was generated, without the end-of-sequence token; ``logp`` is the sum of its token
    log-probabilities in nats, end of sequence included when ``finished``.
    """

    text: str
    logp: float
    num_tokens: int
    finished: bool
    same_tokens: tuple[str, ...] = ()
    """Further titles that the tokenizer makes the same tokens of, of an answer from the catalogue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """The hypotheses decoded for one example, best first: the most probable, or the first drawn."""

    example_id: str
    hypotheses: tuple[Hypothesis, ...]
    gap: float | None = None
    """Nats by which an item that is not among them can be more probable than the last; None where it is not known."""
    target_rank: int | None = None
    """How many titles of the catalogue are more probable than the target; None where not all were ranked."""
    target_logp: float | None = None
    """The target's log-probability in nats, where all titles were ranked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceGroup:
    """A chosen title and the titles it is preferred to, for one example: 1 + N responses to one prompt."""

    example_id: str
    history: tuple[str, ...]
    chosen: str
    rejected: tuple[str, ...]
    candidates: tuple[str, ...] = ()
    """Titles that the prompt lists."""
    weight: float = 1.0
    """Of the example in SFT, beside the others'."""
    smoothing: float | None = None
    """P(the rejected title is really preferred), in [0, 0.5), of ``rosepo``; None takes the phase's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterCheckpoint:
    """LoRA weights on disk (a PEFT folder). ``version`` is unique within a run and names the adapter in an engine."""

    path: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """The metrics of one policy on the test rows, with the counts behind them."""

    label: str
    """``base``, ``sft`` or ``iteration-0``."""
    metrics: Mapping[str, float]
    counts: Mapping[str, int]
    top_items: tuple[tuple[str, int], ...] = ()
    """The most recommended titles at k = 1 with their number of rows."""
    genre_gaps: Mapping[str, float] = field(default_factory=dict)
    """GP - GH per kept genre at k = 1."""
