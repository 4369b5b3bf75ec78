from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from sprec_ray.data.prompts import parse_response
from sprec_ray.data.tokens import TokenEncoder
from sprec_ray.models.scratch import write_untrained_model
from tests.training.tiny_training import SCRATCH, TITLES, TinyPolicy, plain_logp

ODD_TITLES = (
    'A Child Called "It"',
    "  two  spaces, and at both ends ",
    "Les Misérables",
    "吾輩は猫である",
    "emoji 🐈‍⬛ & ligature ﬁ",
    "line\u2028separator\x85next",
    "<|eos|x> [PAD] \\n \t tab",
    "e\u0301 is not \u00e9",
)


@pytest.fixture(scope="module")
def tokenizer(tiny_policy: TinyPolicy) -> Any:
    return AutoTokenizer.from_pretrained(tiny_policy.path)


def encoder_of(tokenizer: Any) -> TokenEncoder:
    return TokenEncoder(tokenizer, template="short", noun="book", max_prompt_tokens=400, max_response_tokens=400)


@pytest.mark.parametrize("title", ODD_TITLES)
def test_titles_come_back_from_their_tokens(tokenizer: Any, title: str) -> None:
    ids = encoder_of(tokenizer).response(title)
    assert ids[-1] == tokenizer.eos_token_id
    assert parse_response(tokenizer.decode(ids, skip_special_tokens=True)) == title


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=30))
def test_any_text_comes_back_from_its_tokens(tokenizer: Any, text: str) -> None:
    """Byte-level BPE knows every text, whatever it was trained on; names of special tokens apart."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text or "<|" in text


def test_special_tokens_have_ids_of_their_own(tokenizer: Any, tiny_policy: TinyPolicy) -> None:
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    config = AutoModelForCausalLM.from_pretrained(tiny_policy.path).config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, 2)
    assert config.vocab_size == len(tokenizer) <= SCRATCH.vocab_size


def test_prompts_begin_with_bos_once_and_do_not_end(tokenizer: Any) -> None:
    ids = encoder_of(tokenizer).prompt(TITLES[:3])
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in ids


def test_frequent_texts_are_merged(tmp_path: Path) -> None:
    write_untrained_model(tmp_path, ["The Hobbit"] * 50, dataclasses.replace(SCRATCH, vocab_size=320), max_positions=16)
    assert len(AutoTokenizer.from_pretrained(tmp_path)("The Hobbit")["input_ids"]) <= 2


def test_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        write_untrained_model(tmp_path / name, TITLES, dataclasses.replace(SCRATCH, seed=seed), max_positions=16)
    contents = {
        name: [(tmp_path / name / file).read_bytes() for file in ("model.safetensors", "tokenizer.json")]
        for name in ("one", "same", "other")
    }
    assert contents["one"] == contents["same"]
    assert contents["one"][0] != contents["other"][0]
    assert contents["one"][1] == contents["other"][1]


def test_an_untrained_model_is_nearly_uniform(tmp_path: Path) -> None:
    """Weights of standard deviation 0.02 leave the logits near 0: each token costs about log(vocabulary) nats."""
    write_untrained_model(tmp_path, TITLES, SCRATCH, max_positions=16)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        logp = plain_logp(model, [0, 10, 20], [30, 40])
    assert float(logp) == pytest.approx(-2 * torch.tensor(float(model.config.vocab_size)).log().item(), abs=0.5)
