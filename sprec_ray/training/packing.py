"""Groups of responses as tensors: packed, where a prompt stands once however many responses it has, or as plain rows.

Dimensions: B groups, K most responses of a group, S responses of all groups, L longest response, T tokens, R plain
rows, A answering positions (whose hidden states predict response tokens), M response tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

BLOCK = 64
"""Response tokens that the CPU's attention takes at once: more waste work on responses that do not see each other."""
PAD_MULTIPLE = 128
"""On a GPU the row is padded to whole blocks of FlexAttention: at most 127 tokens of a micro-batch."""


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """Token ids of a prompt and its responses, the chosen one first. Without rejected responses it is an SFT row."""

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    own_prompts: tuple[tuple[int, ...], ...] | None = None
    """A prompt for each response where they do not share ``prompt`` (DMPO's pairs); nothing is shared then."""
    smoothing: float | None = None
    """``rosepo``: P(the rejected response is really preferred to the chosen one); None takes the configured one."""
    weight: float = 1.0
    """Of an SFT row beside the others' (RW)."""

    @property
    def prompts(self) -> tuple[tuple[int, ...], ...]:
        """The prompt of each response."""
        return self.own_prompts or (self.prompt,) * len(self.responses)

    @property
    def num_tokens(self) -> int:
        """Tokens of a packed row of this group, if no two responses begin alike; their last tokens are never read."""
        prompts = self.own_prompts or (self.prompt,)
        return sum(map(len, prompts)) + sum(map(len, self.responses)) - len(self.responses)

    @property
    def num_positions(self) -> int:
        """The longest prompt and response together, which must fit the model's context."""
        return max(len(prompt) + len(response) for prompt, response in zip(self.prompts, self.responses, strict=True))

    def check(self) -> None:
        """Raise ValueError for an empty prompt or response, or a wrong number of prompts."""
        if not self.responses or not all(self.responses):
            raise ValueError(f"a group has an empty response; its prompt begins with the tokens {self.prompt[:8]}")
        if self.own_prompts is not None and len(self.own_prompts) != len(self.responses):
            raise ValueError(f"a group has {len(self.own_prompts)} prompts for its {len(self.responses)} responses")
        if not all(self.prompts):
            raise ValueError(f"a group has an empty prompt; its first response is {self.responses[0][:8]}")


@dataclass(frozen=True, slots=True)
class Targets:
    """Which hidden state predicts which response token, ordered by the state's position in the batch."""

    offsets: tuple[int, ...]
    """Targets before each answering position: A + 1 numbers."""
    state_M: Tensor
    """Which of the A answering positions predicts a target."""
    token_M: Tensor
    slot_M: Tensor
    """Where a target lies in the flattened [S, L] table of the responses' tokens."""
    num_slots: tuple[int, int]
    """S and L."""
    num_tokens_BK: Tensor
    """Response tokens; 0 where a group has fewer than K responses."""

    @property
    def mask_BK(self) -> Tensor:
        """True where a group has a response."""
        return self.num_tokens_BK > 0

    def to(self, device: torch.device) -> Targets:
        """The same on a device."""
        tensors = (self.state_M, self.token_M, self.slot_M, self.num_tokens_BK)
        state_M, token_M, slot_M, num_tokens_BK = (tensor.to(device) for tensor in tensors)
        return Targets(self.offsets, state_M, token_M, slot_M, self.num_slots, num_tokens_BK)


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring tokens that the CPU's attention takes at once: a chain of tokens, or several small branches."""

    first: int
    answers: int
    """The first answering position of the span, or ``end``."""
    end: int
    sees: tuple[int, ...]
    """Numbers of the spans before this one all of whose tokens every token of this one sees."""
    is_chain: bool
    """Whether every token also sees all tokens of the span before it."""


@dataclass(frozen=True, slots=True)
class PackedGroups:
    """One row of tokens: prompts and responses, without their last tokens, as a tree in depth-first order.

    Prompt ``[7, 8]`` with responses ``[9, 4, 2]``, ``[5, 2]`` and ``[9, 3, 2]`` is ids ``[7, 8, 5, 9, 3, 4]`` at
    positions ``[0, 1, 2, 2, 3, 3]``: the responses that begin with 9 share it, as they share the prompt, and as two
    prompts would share what they begin with. The state of 8 predicts 5, 9 and 9, that of 5 predicts 2, that of 9
    predicts 3 and 4, those of 3 and 4 predict 2: all but 7 are answering positions.
    """

    input_ids_T: Tensor
    position_ids_T: Tensor
    end_T: Tensor
    """Where the subtree of a token ends: token i sees token j if ``j <= i < end[j]``. Here ``[6, 6, 3, 6, 5, 6]``."""
    answering_A: Tensor
    targets: Targets
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class PlainRows:
    """Right-padded rows of prompt + response, one per response: what every model can read."""

    input_ids_RT: Tensor
    attention_mask_RT: Tensor
    answering_A: Tensor
    """Positions in the flattened [R, T]; A = M."""
    targets: Targets


def pack(groups: Sequence[TokenGroup], *, pad_multiple: int = 1) -> PackedGroups:
    """The groups as one row, padded to a multiple of ``pad_multiple`` tokens. Raises ValueError for an empty part.

    In sorted order the sequences that begin alike are neighbours, so a sequence adds to the row what comes after its
    common beginning with the one before.
    """
    ids: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    path: list[int] = []  # where the tokens of the current sequence stand
    predicted: dict[int, list[tuple[int, int, int]]] = {}  # by position: (token, response, place in the response)
    sequences = [(prompt + response, len(prompt)) for prompt, response in _pairs(groups)]
    for number in sorted(range(len(sequences)), key=lambda number: sequences[number]):
        sequence, prompt_length = sequences[number]
        shared = _common(ids, path, sequence)
        for position in path[shared:]:
            ends[position] = len(ids)
        del path[shared:]
        added = range(shared, len(sequence) - 1)
        path.extend(range(len(ids), len(ids) + len(added)))
        ids.extend(sequence[shared:-1])
        positions.extend(added)
        ends.extend([0] * len(added))
        for place, token in enumerate(sequence[prompt_length:]):
            predicted.setdefault(path[prompt_length + place - 1], []).append((token, number, place))
    for position in path:
        ends[position] = len(ids)
    answering = sorted(predicted)
    num_tokens, padding = len(ids), [0] * (-len(ids) % pad_multiple)
    return PackedGroups(
        input_ids_T=torch.tensor(ids + padding),
        position_ids_T=torch.tensor(positions + padding),
        end_T=torch.tensor([*ends, *range(num_tokens + 1, num_tokens + len(padding) + 1)]),
        answering_A=torch.tensor(answering),
        targets=_targets(groups, [predicted[position] for position in answering]),
        spans=tuple(_cut(ends, answering)),
    )


def _cut(ends: Sequence[int], answering: Sequence[int]) -> list[Span]:
    """The spans of a row: small branches are taken together, a large one is its trunk and then its branches."""
    spans: list[Span] = []

    def add(first: int, end: int, sees: tuple[int, ...], *, is_chain: bool = False) -> None:
        if first < end:
            nth = bisect_left(answering, first)
            answers = min(answering[nth], end) if nth < len(answering) else end
            spans.append(Span(first, answers, end, sees, is_chain))

    def cut(first: int, end: int, sees: tuple[int, ...]) -> None:
        position = first
        while position < end:
            branch, position = position, ends[position]
            if position - branch > BLOCK:
                add(first, branch, sees)
                first = position
                trunk = branch
                while branch < position and ends[branch] == position:
                    branch += 1
                add(trunk, branch, sees, is_chain=True)
                cut(branch, position, (*sees, len(spans) - 1))
            elif position - first >= BLOCK:
                add(first, position, sees)
                first = position
        add(first, end, sees)

    cut(0, len(ends), ())
    return spans


def _common(ids: Sequence[int], path: Sequence[int], sequence: Sequence[int]) -> int:
    """How many tokens the path and the sequence begin with alike, the sequence's last not counted."""
    count = 0
    for position, token in zip(path, sequence[:-1], strict=False):
        if ids[position] != token:
            break
        count += 1
    return count


def plain_rows(groups: Sequence[TokenGroup]) -> PlainRows:
    """The groups as one padded row per response. Raises ValueError for an empty part."""
    rows = _pairs(groups)
    length = max(len(prompt) + len(response) for prompt, response in rows)
    input_ids = np.zeros((len(rows), length), dtype=np.int64)
    attention = np.zeros((len(rows), length), dtype=np.int64)
    answering: list[int] = []
    predicted: list[list[tuple[int, int, int]]] = []
    for row, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        input_ids[row, :end] = [*prompt, *response]
        attention[row, :end] = 1
        answering.extend(range(row * length + len(prompt) - 1, row * length + end - 1))
        predicted.extend([(token, row, place)] for place, token in enumerate(response))
    return PlainRows(
        input_ids_RT=torch.from_numpy(input_ids),
        attention_mask_RT=torch.from_numpy(attention),
        answering_A=torch.tensor(answering),
        targets=_targets(groups, predicted),
    )


def _pairs(groups: Sequence[TokenGroup]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every response with its prompt. Raises ValueError for an empty part."""
    for group in groups:
        group.check()
    return [pair for group in groups for pair in zip(group.prompts, group.responses, strict=True)]


def _targets(groups: Sequence[TokenGroup], predicted: Sequence[Sequence[tuple[int, int, int]]]) -> Targets:
    longest = max(len(response) for group in groups for response in group.responses)
    num_responses = sum(len(group.responses) for group in groups)
    most = max(len(group.responses) for group in groups)
    flat = [target for at in predicted for target in at]
    return Targets(
        offsets=(0, *accumulate(len(at) for at in predicted)),
        state_M=torch.tensor([state for state, at in enumerate(predicted) for _ in at]),
        token_M=torch.tensor([token for token, _, _ in flat]),
        slot_M=torch.tensor([response * longest + place for _, response, place in flat]),
        num_slots=(num_responses, longest),
        num_tokens_BK=torch.tensor(
            [[*map(len, group.responses), *[0] * (most - len(group.responses))] for group in groups]
        ),
    )
