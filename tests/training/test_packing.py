from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sprec_ray.training import packing
from sprec_ray.training.packing import PackedGroups, TokenGroup, pack, plain_rows
from tests.training.tiny_training import make_groups

TOKENS = st.lists(st.integers(3, 6), min_size=1, max_size=7).map(tuple)  # four tokens: many beginnings are shared
GROUPS = st.lists(
    st.builds(TokenGroup, TOKENS, st.lists(TOKENS, min_size=1, max_size=4).map(tuple)), min_size=1, max_size=4
)


def sequence_of(packed: PackedGroups, position: int) -> tuple[int, ...]:
    """The tokens that a position sees, which are the sequence up to it."""
    at = np.arange(len(packed.end_T))
    seen = (at <= position) & (position < packed.end_T.numpy())
    return tuple(packed.input_ids_T[torch.from_numpy(seen)].tolist())


def test_packed_row_by_hand() -> None:
    """Prompt [7, 8] with [9, 4, 2], [5, 2] and [9, 3, 2], and prompt [6] with [1]; the other answers begin with 9."""
    packed = pack([TokenGroup((7, 8), ((9, 4, 2), (5, 2), (9, 3, 2))), TokenGroup((6,), ((1,),))], pad_multiple=8)
    assert packed.input_ids_T.tolist() == [6, 7, 8, 5, 9, 3, 4, 0]
    assert packed.position_ids_T.tolist() == [0, 0, 1, 2, 2, 3, 3, 0]
    assert packed.end_T.tolist() == [1, 7, 7, 4, 7, 6, 7, 8]
    assert packed.answering_A.tolist() == [0, 2, 3, 4, 5, 6]
    targets = packed.targets
    assert targets.offsets == (0, 1, 4, 5, 7, 8, 9)
    assert targets.state_M.tolist() == [0, 1, 1, 1, 2, 3, 3, 4, 5]
    assert targets.token_M.tolist() == [1, 5, 9, 9, 2, 3, 4, 2, 2]
    assert targets.num_slots == (4, 3)
    # Response 1 is [5, 2], response 2 is [9, 3, 2], response 0 is [9, 4, 2], response 3 is [1]; rows of three.
    assert targets.slot_M.tolist() == [9, 3, 6, 0, 4, 7, 1, 8, 2]
    assert targets.num_tokens_BK.tolist() == [[3, 2, 3], [1, 0, 0]]
    assert targets.mask_BK.tolist() == [[True, True, True], [True, False, False]]


def test_plain_rows_by_hand() -> None:
    """Prompt [7, 8] with response [9, 2], and prompt [4] with [5, 6, 3, 2]."""
    rows = plain_rows([TokenGroup((7, 8), ((9, 2),)), TokenGroup((4,), ((5, 6, 3, 2),))])
    assert rows.input_ids_RT.tolist() == [[7, 8, 9, 2, 0], [4, 5, 6, 3, 2]]
    assert rows.attention_mask_RT.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert rows.answering_A.tolist() == [1, 2, 5, 6, 7, 8]
    assert rows.targets.token_M.tolist() == [9, 2, 5, 6, 3, 2]
    assert rows.targets.slot_M.tolist() == [0, 1, 4, 5, 6, 7]


@given(GROUPS)
def test_every_target_is_predicted_from_exactly_what_comes_before_it(groups: list[TokenGroup]) -> None:
    packed = pack(groups)
    targets = packed.targets
    rows = [
        (prompt, response) for group in groups for prompt, response in zip(group.prompts, group.responses, strict=True)
    ]
    found = set()
    for state, token, slot in zip(
        targets.state_M.tolist(), targets.token_M.tolist(), targets.slot_M.tolist(), strict=True
    ):
        number, place = divmod(slot, targets.num_slots[1])
        prompt, response = rows[number]
        position = int(packed.answering_A[state])
        assert token == response[place]
        assert sequence_of(packed, position) == prompt + response[:place]
        assert int(packed.position_ids_T[position]) == len(prompt) + place - 1
        found.add((number, place))
    assert found == {(number, place) for number, (_, response) in enumerate(rows) for place in range(len(response))}


@given(GROUPS)
def test_no_two_tokens_of_a_row_see_the_same(groups: list[TokenGroup]) -> None:
    """What is shared stands once: the row is as long as there are different beginnings."""
    packed = pack(groups)
    sequences = [sequence_of(packed, position) for position in range(len(packed.end_T))]
    beginnings = {
        (prompt + response)[:length]
        for group in groups
        for prompt, response in zip(group.prompts, group.responses, strict=True)
        for length in range(1, len(prompt) + len(response))
    }
    assert len(set(sequences)) == len(sequences)
    assert set(sequences) == beginnings
    assert len(sequences) <= sum(group.num_tokens for group in groups)


@given(GROUPS, st.integers(1, 9))
def test_spans_cover_the_row_and_hide_nothing(groups: list[TokenGroup], block: int) -> None:
    """Every token that another sees is in the spans its span sees, all of which it sees, or in its own span."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BLOCK", block)
        packed = pack(groups)
    ends, answering = packed.end_T.tolist(), set(packed.answering_A.tolist())
    assert packed.spans[0].first == 0
    assert packed.spans[-1].end == len(ends)
    assert all(one.end == other.first for one, other in pairwise(packed.spans))
    for span in packed.spans:
        before = {at for number in span.sees for at in range(packed.spans[number].first, packed.spans[number].end)}
        inside = range(span.first, span.end)
        assert not answering & set(range(span.first, span.answers))
        for position in inside:
            seen = {at for at in range(position + 1) if position < ends[at]}
            assert seen == before | (seen & set(inside))
            assert not span.is_chain or seen & set(inside) == set(range(span.first, position + 1))


def test_long_branches_are_taken_apart_and_short_ones_together() -> None:
    """A common beginning of 100 tokens, then prompts of 80, 70 and 5 more tokens with two answers each."""
    rng = random.Random(0)
    head = tuple(rng.randrange(3, 300) for _ in range(100))

    def prompt(first: int, length: int) -> tuple[int, ...]:
        return (*head, first, *(rng.randrange(3, 300) for _ in range(length - 1)))

    answers = ((310, 311, 2), (320, 321, 2))
    packed = pack([TokenGroup(prompt(10 + place, length), answers) for place, length in enumerate((80, 70, 5))])
    assert [(span.first, span.end, span.sees, span.is_chain) for span in packed.spans] == [
        (0, 100, (), True),
        (100, 180, (0,), True),
        (180, 184, (0, 1), False),
        (184, 254, (0,), True),
        (254, 258, (0, 3), False),
        (258, 267, (0,), False),
    ]


def test_order_of_responses_does_not_change_the_row() -> None:
    """So that permuted negatives give the same numbers to the last bit."""
    group = make_groups(1, num_rejected=(5,))[0]
    reverse = TokenGroup(group.prompt, group.responses[::-1])
    assert torch.equal(pack([group]).input_ids_T, pack([reverse]).input_ids_T)


def test_real_lengths_leave_less_than_a_tenth_of_padding_on_a_gpu() -> None:
    """A micro-batch of four groups of the issue's lengths is padded to a multiple of 128."""
    rng = random.Random(0)
    shares = []
    for _ in range(50):
        groups = [
            TokenGroup(
                tuple(rng.randrange(3, 5000) for _ in range(rng.randint(150, 300))),
                tuple(tuple(rng.randrange(3, 5000) for _ in range(rng.randint(5, 20))) for _ in range(4)),
            )
            for _ in range(4)
        ]
        length = len(pack(groups, pad_multiple=packing.PAD_MULTIPLE).input_ids_T)
        assert length % packing.PAD_MULTIPLE == 0
        shares.append(1 - len(pack(groups).input_ids_T) / length)
    assert sum(shares) / len(shares) < 0.1


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (TokenGroup((5, 6), ()), r"a group has an empty response; its prompt begins with the tokens \(5, 6\)"),
        (TokenGroup((5, 6), ((7,), ())), r"a group has an empty response; its prompt begins with the tokens \(5, 6\)"),
        (TokenGroup((), ((7,),)), r"a group has an empty prompt; its first response is \(7,\)"),
        (TokenGroup((), ((7,), (8,)), own_prompts=((5,), ())), r"a group has an empty prompt"),
        (TokenGroup((), ((7,), (8,)), own_prompts=((5,),)), r"a group has 1 prompts for its 2 responses"),
    ],
)
def test_an_empty_part_is_refused(group: TokenGroup, message: str) -> None:
    for layout in (pack, plain_rows):
        with pytest.raises(ValueError, match=message):
            layout([TokenGroup((1,), ((2,),)), group])


def test_a_group_knows_its_tokens_and_positions() -> None:
    shared = TokenGroup((1, 2, 3), ((4, 5), (6,)))
    assert (shared.num_tokens, shared.num_positions) == (3 + 1 + 0, 5)
    apart = TokenGroup((), ((4, 5), (6,)), own_prompts=((1,), (1, 2, 3, 4)))
    assert (apart.num_tokens, apart.num_positions) == (1 + 4 + 1, 5)
    assert apart.prompts == ((1,), (1, 2, 3, 4))
