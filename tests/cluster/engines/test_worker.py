from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sprec_ray.cluster.engines.row_tokens import preference_tokens
from sprec_ray.cluster.engines.worker import _give_back_memory
from sprec_ray.data.prompts import render_prompt, render_response
from sprec_ray.data.tokens import TokenEncoder
from sprec_ray.training.phase import Worker
from sprec_ray.types import PreferenceGroup


def test_every_response_of_a_row_is_whole_and_the_longest_decides_on_the_prompt() -> None:
    """One token per byte. The limits hold two titles and 8 tokens of response; a rejected one has 11."""
    vocabulary = {byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    limit = len(render_prompt(["Dune", "Emma"], template="short", noun="book"))
    encoder = TokenEncoder(tokenizer, template="short", noun="book", max_prompt_tokens=limit, max_response_tokens=8)
    row = PreferenceGroup(example_id="1", history=("Dune", "Emma"), chosen="1984", rejected=("Ulysses", "It"))
    group = preference_tokens(row, encoder)
    assert [tokenizer.decode(response[:-1]) for response in group.responses] == [
        render_response(title) for title in ("1984", "Ulysses", "It")
    ]
    assert {response[-1] for response in group.responses} == {tokenizer.eos_token_id}
    assert tokenizer.decode(group.prompt) == render_prompt(["Emma"], template="short", noun="book")
    assert group.num_positions <= limit + 8
    assert (encoder.num_truncated_prompts, encoder.num_long_responses) == (1, 1)


def test_only_a_worker_on_a_gpu_returns_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[str] = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: emptied.append("cache"))
    _give_back_memory(Worker(0, 1, torch.device("cpu")))
    assert emptied == []
    _give_back_memory(Worker(0, 1, torch.device("cuda")))
    assert emptied == ["cache"]
