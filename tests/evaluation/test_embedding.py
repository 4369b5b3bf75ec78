"""Embedding of titles with a tiny random Llama."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from sprec_ray.evaluation.embedding import embed_texts

TEXTS = ["a much longer title than the others", "b", "", "Dune", "Dune (2021)", "é小", "xyz", "b"]


class ByteTokenizer:
    """One token per byte; 0 is padding, 1 begins a sequence, 2 ends one."""

    eos_token_id = 2

    def __init__(self, bos_token_id=1):
        self.bos_token_id = bos_token_id

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [3 + byte for byte in text.encode()]}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    return LlamaForCausalLM(config).eval()


def test_the_batch_size_changes_nothing(model):
    whole = embed_texts(model, ByteTokenizer(), TEXTS, batch_size=64)
    single = embed_texts(model, ByteTokenizer(), TEXTS, batch_size=1)
    assert whole.shape == (len(TEXTS), 32)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, single, atol=1e-5)
    np.testing.assert_allclose(whole[1], whole[7], atol=1e-6)


def test_it_is_the_last_hidden_state_of_the_last_token(model):
    ids = torch.tensor([[1, *(3 + byte for byte in b"Dune")]])
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
    np.testing.assert_allclose(embed_texts(model, ByteTokenizer(), TEXTS)[3], expected, atol=1e-5)


def test_a_text_without_tokens_is_its_end_of_sequence_token_where_there_is_no_beginning(model):
    tokenizer = ByteTokenizer(bos_token_id=None)
    with torch.no_grad():
        expected = model.model(torch.tensor([[2]])).last_hidden_state[0, -1]
    np.testing.assert_allclose(embed_texts(model, tokenizer, [""])[0], expected, atol=1e-5)


def test_no_text_gives_no_rows(model):
    assert embed_texts(model, ByteTokenizer(), []).shape == (0, 32)


def test_an_adapter_counts_and_the_training_mode_comes_back():
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    torch.manual_seed(0)
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, lora_dropout=0.5)
    adapted = get_peft_model(LlamaForCausalLM(config), lora).train()
    first = embed_texts(adapted, ByteTokenizer(), TEXTS)
    assert adapted.training
    np.testing.assert_array_equal(first, embed_texts(adapted, ByteTokenizer(), TEXTS))
    with adapted.disable_adapter():
        assert np.abs(first - embed_texts(adapted, ByteTokenizer(), TEXTS)).max() > 1e-3
