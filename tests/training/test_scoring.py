from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_training import TinyPolicy, make_groups, plain_logp, plain_policy
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from sprec_ray.training.scoring import ResponseScorer, check_scorer, make_scoring_batch

CPU = torch.device("cpu")
ROWS = [(group.prompt, group.responses[0]) for group in make_groups(7, seed=3)]


def score(model: nn.Module, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    logps: Tensor = ResponseScorer(model)(make_scoring_batch(rows, device=CPU))
    return logps


def assert_equal_to_plain(model: nn.Module) -> None:
    with torch.no_grad():
        expected = torch.stack([plain_logp(model, *row) for row in ROWS])
        torch.testing.assert_close(score(model, ROWS), expected, rtol=0, atol=1e-4)


def test_batch_by_hand() -> None:
    """Prompt [7, 8] and response [9, 2] beside a row of five tokens."""
    batch = make_scoring_batch([([7, 8], [9, 2]), ([4], [5, 6, 3, 2])], device=CPU)
    assert batch.input_ids_RT.tolist() == [[7, 8, 9, 2, 0], [4, 5, 6, 3, 2]]
    assert batch.attention_mask_RT.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch.response_mask_RT.int().tolist() == [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1]]
    assert batch.num_response_tokens_R.tolist() == [2, 4]


@pytest.mark.parametrize("row", [([], [1]), ([1], [])])
def test_an_empty_prompt_or_response_is_refused(row: tuple[list[int], list[int]]) -> None:
    with pytest.raises(ValueError, match="at least one prompt token and one response token"):
        make_scoring_batch([([1], [2]), row], device=CPU)


def test_scores_equal_log_softmax_of_the_models_logits(tiny_policy: TinyPolicy) -> None:
    assert_equal_to_plain(plain_policy(tiny_policy.path, None).eval())


def test_scores_of_a_peft_model_include_its_adapter(tiny_policy: TinyPolicy) -> None:
    model = plain_policy(tiny_policy.path, tiny_policy.adapters[0]).eval()
    assert_equal_to_plain(model)
    with torch.no_grad(), model.disable_adapter():
        base = score(model, ROWS)
    with torch.no_grad():
        assert float((score(model, ROWS) - base).abs().min()) > 1e-3
        torch.testing.assert_close(base, score(plain_policy(tiny_policy.path, None).eval(), ROWS), rtol=0, atol=1e-5)


def test_scores_do_not_depend_on_the_other_rows(tiny_policy: TinyPolicy) -> None:
    """Alone, in reverse, and beside a row that pads all others by 30 tokens."""
    model = plain_policy(tiny_policy.path, tiny_policy.adapters[0]).eval()
    with torch.no_grad():
        together = score(model, ROWS)
        alone = torch.cat([score(model, [row]) for row in ROWS])
        reverse = score(model, ROWS[::-1]).flip(0)
        padded = score(model, [*ROWS, (range(3, 33), range(40, 50))])[:-1]
    for other in (alone, reverse, padded):
        torch.testing.assert_close(other, together, rtol=0, atol=1e-4)


def test_the_probabilities_of_all_one_token_responses_sum_to_one(tiny_policy: TinyPolicy) -> None:
    model = plain_policy(tiny_policy.path, None).eval()
    with torch.no_grad():
        logps = score(model, [([5, 6, 7], [token]) for token in range(model.config.vocab_size)])
    assert float(logps.exp().sum()) == pytest.approx(1, abs=1e-5)


def test_gradients_equal_those_of_the_plain_computation(tiny_policy: TinyPolicy) -> None:
    model = plain_policy(tiny_policy.path, tiny_policy.adapters[0]).eval()
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    ours = torch.autograd.grad(score(model, ROWS).sum(), trainable)
    theirs = torch.autograd.grad(torch.stack([plain_logp(model, *row) for row in ROWS]).sum(), trainable)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_logits_that_the_model_caps_are_capped_here_too() -> None:
    """Gemma 2 puts its logits through 30 * tanh(logits / 30); here the cap is 2, so that it matters."""
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            final_logit_softcapping=2.0,
        )
    ).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)
        capped = score(model, ROWS)
    assert_equal_to_plain(model)
    model.config.final_logit_softcapping = None
    with torch.no_grad():
        assert float((score(model, ROWS) - capped).abs().min()) > 0.1


def test_scores_of_a_bfloat16_model_are_float32(tiny_policy: TinyPolicy) -> None:
    with torch.no_grad():
        found = score(plain_policy(tiny_policy.path, None, dtype=torch.bfloat16).eval(), ROWS)
        expected = score(plain_policy(tiny_policy.path, None).eval(), ROWS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0.3)


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (CohereForCausalLM, CohereConfig(logit_scale=0.25)),
        (GraniteForCausalLM, GraniteConfig(logits_scaling=8.0)),
    ],
)
def test_an_architecture_that_scales_its_logits_is_refused(model_class: Any, config: Any) -> None:
    """The scorer applies the LM head itself: a factor after it would silently flatten every distribution."""
    for key, value in {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "initializer_range": 1.0,
    }.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    model = model_class(config).eval()
    with pytest.raises(ValueError, match=r"changes its logits after the LM head"):
        check_scorer(model, [5, 6, 7], [8, 9, 10, 11])


def test_a_llama_passes_the_check() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    check_scorer(LlamaForCausalLM(config).eval(), [5, 6, 7], [8, 9, 10, 11])
