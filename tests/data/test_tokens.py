import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sprec_ray.data.prompts import render_prompt, render_response
from sprec_ray.data.tokens import TokenEncoder


def make_tokenizer(*, bos: bool) -> PreTrainedTokenizerFast:
    """One token per byte, so that lengths can be counted by hand."""
    vocabulary = {byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>" if bos else None, eos_token="</s>")


def make_encoder(*, bos: bool = False, max_prompt_tokens: int = 500, max_response_tokens: int = 50) -> TokenEncoder:
    return TokenEncoder(
        make_tokenizer(bos=bos),
        template="short",
        noun="book",
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=max_response_tokens,
    )


def test_prompt_and_response_decode_to_their_text() -> None:
    encoder = make_encoder()
    history = ["Dune", 'A Child Called "It"', "Café\u2028Noir"]
    text = encoder.tokenizer.decode(encoder.prompt(history) + encoder.response("Emma")[:-1])
    assert text == render_prompt(history, template="short", noun="book") + render_response("Emma")


def test_a_response_ends_with_end_of_sequence() -> None:
    encoder = make_encoder()
    assert encoder.response("Emma")[-1] == encoder.tokenizer.eos_token_id
    assert len(encoder.response("Emma")) == len('"Emma"\n') + 1


def test_a_prompt_starts_with_beginning_of_sequence_where_there_is_one() -> None:
    encoder = make_encoder(bos=True)
    assert encoder.prompt(["Dune"])[0] == encoder.tokenizer.bos_token_id
    assert encoder.prompt(["Dune"])[1:] == make_encoder().prompt(["Dune"])


def test_a_long_prompt_loses_its_oldest_titles_and_is_counted() -> None:
    limit = len(render_prompt(["Emma", "Ulysses"], template="short", noun="book"))
    encoder = make_encoder(max_prompt_tokens=limit)
    assert encoder.prompt(["Dune", "Emma", "Ulysses"]) == encoder.prompt(["Emma", "Ulysses"])
    assert encoder.num_truncated_prompts == 1


@pytest.mark.parametrize("limit", [20, 21])
def test_a_single_title_that_is_too_long_is_cut_in_the_middle(limit: int) -> None:
    encoder = make_encoder(max_prompt_tokens=limit)
    ids = encoder.prompt(["x" * 100])
    assert len(ids) == limit
    assert encoder.tokenizer.decode(ids).endswith("book:\n")
    assert encoder.num_truncated_prompts == 1


def test_an_empty_history_has_a_prompt() -> None:
    encoder = make_encoder()
    assert encoder.tokenizer.decode(encoder.prompt([])) == render_prompt([], template="short", noun="book")


def test_a_long_response_stays_whole_and_is_counted() -> None:
    encoder = make_encoder(max_response_tokens=8)
    assert len(encoder.response("Emma")) == 8
    assert encoder.num_long_responses == 0
    assert encoder.tokenizer.decode(encoder.response("Ulysses")[:-1]) == '"Ulysses"\n'
    assert encoder.response("Ulysses")[-1] == encoder.tokenizer.eos_token_id
    assert encoder.num_long_responses == 2


def test_a_long_response_takes_its_room_from_the_oldest_titles() -> None:
    """A limit of 8 for responses: what "Ulysses" (11 tokens) has beyond it, its prompt has not."""
    limit = len(render_prompt(["Dune", "Emma"], template="short", noun="book"))
    encoder = make_encoder(max_prompt_tokens=limit, max_response_tokens=8)
    short, long = encoder.response("Emma"), encoder.response("Ulysses")
    assert encoder.room([short]) == limit
    assert encoder.room([short, long]) == limit - 3
    assert encoder.prompt(["Dune", "Emma"], room=encoder.room([short])) == encoder.prompt(["Dune", "Emma"])
    assert encoder.num_truncated_prompts == 0
    assert encoder.prompt(["Dune", "Emma"], room=encoder.room([short, long])) == encoder.prompt(["Emma"])
    assert encoder.num_truncated_prompts == 1


def test_a_response_that_leaves_no_room_for_a_prompt_is_refused_by_its_title() -> None:
    """20 + 8 tokens less the 12 of "aaaaaaaa" leave 16, the least; one more is too many. A long title is cut."""
    encoder = make_encoder(max_prompt_tokens=20, max_response_tokens=8)
    assert encoder.room([encoder.response("a" * 8)]) == 16
    message = (
        r'^the title "a{9}" has 13 tokens, which leaves 15 for its prompt; raise model\.max_prompt_tokens or model'
    )
    with pytest.raises(ValueError, match=message):
        encoder.room([encoder.response("Emma"), encoder.response("a" * 9)])
    with pytest.raises(ValueError, match=r'^the title "a{79}\.\.\. has 104 tokens, which leaves 0 for its prompt'):
        encoder.room([encoder.response("a" * 100)])


def test_before_candidates_the_whole_history_gives_way() -> None:
    candidates = ["Ulysses", "1984"]
    limit = len(render_prompt([], template="short", noun="book", candidates=candidates))
    encoder = make_encoder(max_prompt_tokens=limit)
    assert encoder.prompt(["Dune", "Emma"], candidates=candidates) == encoder.prompt([], candidates=candidates)
    assert encoder.tokenizer.decode(encoder.prompt([], candidates=candidates)).count('"Ulysses", "1984"') == 1
    assert encoder.num_truncated_prompts == 1


def test_candidates_that_do_not_fit_are_an_error() -> None:
    candidates = ["Ulysses", "1984"]
    limit = len(render_prompt([], template="short", noun="book", candidates=candidates))
    with pytest.raises(
        ValueError, match=f"2 candidates has {limit} tokens.*room for {limit - 1}; raise model.max_prompt"
    ):
        make_encoder(max_prompt_tokens=limit - 1).prompt(["Dune"], candidates=candidates)
