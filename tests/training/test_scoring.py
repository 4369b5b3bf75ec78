from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sprec_ray.config.methods import PAIRWISE
from sprec_ray.training import packing, scoring
from sprec_ray.training import tree_attention as attention
from sprec_ray.training.losses import PREFERENCE_LOSSES, GroupLogps, LossSettings, preference_loss
from sprec_ray.training.packing import TokenGroup, pack
from sprec_ray.training.scoring import ResponseScorer, make_scorer
from tests.training.tiny_training import TinyPolicy, make_groups, plain_logp, plain_policy

CPU = torch.device("cpu")
GROUPS = [*make_groups(6, num_rejected=(0, 3, 1), seed=3), *make_groups(3, num_rejected=(2,), seed=4)]
SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = {"sliding_window": 4096, "query_pre_attn_scalar": 16}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "mistral": (MistralForCausalLM, MistralConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
    "gemma": (GemmaForCausalLM, GemmaConfig, {}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {**GEMMA, "attn_logit_softcapping": 5.0}),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, GEMMA),
    "phi3": (Phi3ForCausalLM, Phi3Config, {}),  # its queries, keys and values are one layer
    "gpt2": (GPT2LMHeadModel, GPT2Config, {"n_embd": 64, "n_layer": 2, "n_head": 4}),  # and no position is rotated
}


@pytest.fixture(params=[False, True], ids=["plain", "shared"])
def share(request: pytest.FixtureRequest) -> bool:
    shares: bool = request.param
    return shares


@pytest.fixture
def small_blocks() -> Iterator[None]:
    """Rows of a few tokens are cut into as many spans as long ones are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BLOCK", 4)
        yield


def random_model(family: str, **changes: Any) -> Any:
    model_class, config_class, extra = FAMILIES[family]
    torch.manual_seed(0)
    model = model_class(config_class(**{**SIZES, **extra, **changes}, attn_implementation="eager")).eval()
    with torch.no_grad():
        for weight in model.parameters():  # norms and biases start alike, under which some mistakes look alike
            if weight.ndim == 1:
                weight.add_(torch.randn_like(weight) * 0.1)
    return model


def score(model: nn.Module, groups: Sequence[TokenGroup], *, share: bool = False) -> Tensor:
    scorer = ResponseScorer(model, share_prompts=share)
    try:
        logps: Tensor = scorer(scorer.batch(groups, CPU))
    finally:
        if share:
            scorer.stop_sharing()
    return logps


def expected_logps(model: nn.Module, groups: Sequence[TokenGroup]) -> Tensor:
    """Log-probabilities [B, K] by the second implementation, 0 where a group has no response."""
    rows = [torch.stack([plain_logp(model, group.prompt, r) for r in group.responses]) for group in groups]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def gradients(model: nn.Module, loss: Tensor) -> Tensor:
    """The gradient of all parameters that have one, flat."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    return torch.cat([gradient.flatten() for gradient in found if gradient is not None])


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_scores_equal_log_softmax_of_the_models_logits(tiny_policy: TinyPolicy, share: bool) -> None:
    model = plain_policy(tiny_policy.path, None).eval()
    with torch.no_grad():
        torch.testing.assert_close(score(model, GROUPS, share=share), expected_logps(model, GROUPS), rtol=0, atol=1e-4)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_shares_its_prompts_with_equal_scores_and_gradients(family: str) -> None:
    model = random_model(family)
    expected = expected_logps(model, GROUPS)
    expected_gradients = gradients(model, expected.sum())
    scorer = make_scorer(model, GROUPS)
    assert scorer.share_prompts
    found = scorer(scorer.batch(GROUPS, CPU))
    assert relative(found.detach(), expected.detach()) < 1e-5
    assert relative(gradients(model, found.sum()), expected_gradients) < 1e-5


def test_scores_of_a_peft_model_include_its_adapter(tiny_policy: TinyPolicy, share: bool) -> None:
    model = plain_policy(tiny_policy.path, tiny_policy.adapters[0]).eval()
    with torch.no_grad():
        found = score(model, GROUPS, share=share)
        torch.testing.assert_close(found, expected_logps(model, GROUPS), rtol=0, atol=1e-4)
        with model.disable_adapter():
            base = score(model, GROUPS, share=share)
        expected = expected_logps(plain_policy(tiny_policy.path, None).eval(), GROUPS)
    torch.testing.assert_close(base, expected, rtol=0, atol=1e-4)
    assert float((found - base).abs()[expected != 0].min()) > 1e-3


@pytest.mark.usefixtures("small_blocks")
def test_scores_do_not_depend_on_the_other_groups(tiny_policy: TinyPolicy, share: bool) -> None:
    """Alone, in reverse, and beside a group that is 30 tokens longer than all others."""
    model = plain_policy(tiny_policy.path, tiny_policy.adapters[0]).eval()
    with torch.no_grad():
        together = score(model, GROUPS, share=share)
        for number, group in enumerate(GROUPS):
            alone = score(model, [group], share=share)[0]
            torch.testing.assert_close(alone, together[number, : len(alone)], rtol=1e-6, atol=1e-5)
        reverse = score(model, GROUPS[::-1], share=share).flip(0)
        longer = score(model, [*GROUPS, TokenGroup(tuple(range(3, 33)), (tuple(range(40, 50)),))], share=share)[:-1]
    torch.testing.assert_close(reverse, together, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(longer, together, rtol=1e-6, atol=1e-5)


def test_permuted_negatives_give_permuted_scores_to_the_last_bit(tiny_policy: TinyPolicy) -> None:
    model = plain_policy(tiny_policy.path, None).eval()
    group = make_groups(1, num_rejected=(6,), seed=9)[0]
    order = list(range(7))
    random.Random(1).shuffle(order)
    permuted = TokenGroup(group.prompt, tuple(group.responses[place] for place in order))
    with torch.no_grad():
        assert torch.equal(score(model, [permuted], share=True)[0], score(model, [group], share=True)[0][order])


def test_the_same_response_twice_scores_the_same_twice(tiny_policy: TinyPolicy) -> None:
    model = plain_policy(tiny_policy.path, None).eval()
    group = make_groups(1, num_rejected=(1,))[0]
    twice = TokenGroup(group.prompt, (*group.responses, group.responses[0]))
    with torch.no_grad():
        logps_K = score(model, [twice], share=True)[0]
    assert logps_K[0] == logps_K[2] != logps_K[1]


@pytest.mark.usefixtures("small_blocks")
def test_groups_of_different_prompts_score_like_groups_of_their_own(tiny_policy: TinyPolicy, share: bool) -> None:
    model = plain_policy(tiny_policy.path, None).eval()
    singles = make_groups(3, seed=5)
    group = TokenGroup((), tuple(one.responses[0] for one in singles), own_prompts=tuple(one.prompt for one in singles))
    with torch.no_grad():
        found = score(model, [group], share=share)[0]
        torch.testing.assert_close(found, expected_logps(model, singles)[:, 0], rtol=0, atol=1e-4)


def test_the_probabilities_of_all_one_token_responses_sum_to_one(tiny_policy: TinyPolicy, share: bool) -> None:
    """A candidate list as long as the vocabulary."""
    model = plain_policy(tiny_policy.path, None).eval()
    candidates = tuple((token,) for token in range(model.config.vocab_size))
    with torch.no_grad():
        logps_K = score(model, [TokenGroup((5, 6, 7), candidates)], share=share)[0]
    assert float(logps_K.exp().sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("loss", PREFERENCE_LOSSES)
def test_loss_and_gradient_equal_those_of_separate_rows(tiny_policy: TinyPolicy, loss: str) -> None:
    """Every loss, with a reference that is not the policy, against a row per response of transformers' own logits."""
    groups = make_groups(5, num_rejected=(1,) if loss in PAIRWISE else (1, 4, 2), seed=7)
    with torch.no_grad():
        references = expected_logps(plain_policy(tiny_policy.path, tiny_policy.adapters[1]).eval(), groups)
    model = plain_policy(tiny_policy.path, tiny_policy.adapters[0]).eval()
    settings = LossSettings(beta=0.3, margin=0.5, sft_coef=0.2)
    counts = pack(groups).targets.num_tokens_BK

    def total(policy_BK: Tensor) -> Tensor:
        logps = GroupLogps(
            policy_BK=policy_BK,
            reference_BK=references,
            mask_BK=counts > 0,
            num_tokens_BK=counts,
            smoothing_B=torch.full((5,), 0.1),
        )
        return preference_loss(loss, logps, settings).mean()

    results = []
    for logps_BK in (score(model, groups, share=True), score(model, groups), expected_logps(model, groups)):
        value = total(logps_BK)
        results.append((float(value.detach()), gradients(model, value)))
    for value_and_gradient in results[:2]:
        assert value_and_gradient[0] == pytest.approx(results[2][0], rel=1e-5)
        assert relative(value_and_gradient[1], results[2][1]) < 2e-5


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_gradient_checkpointing_changes_no_gradient(family: str) -> None:
    model = random_model(family)
    scorer = make_scorer(model, GROUPS)
    batch = scorer.batch(GROUPS, CPU)
    expected = gradients(model, scorer(batch).sum())
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    first = scorer(batch).sum()
    with torch.no_grad():
        scorer(scorer.batch(GROUPS[:1], CPU))  # what is computed again must not use the layout of another batch
    assert relative(gradients(model, first), expected) < 1e-6


@pytest.mark.parametrize("max_logits", [1, 700, 10**4])
def test_logits_in_chunks_change_nothing(tiny_policy: TinyPolicy, share: bool, max_logits: int) -> None:
    """And no more logits than allowed exist at once, whatever the number of answering positions."""
    model = plain_policy(tiny_policy.path, tiny_policy.adapters[0]).eval()
    expected = score(model, GROUPS, share=share)
    expected_gradients = gradients(model, expected.sum())
    sizes: list[int] = []
    head = model.get_base_model().get_output_embeddings()
    hook = head.register_forward_hook(lambda _module, _inputs, logits: sizes.append(logits.numel()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "MAX_LOGITS", max_logits)
        found = score(model, GROUPS, share=share)
        found_gradients = gradients(model, found.sum())
    hook.remove()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    assert relative(found_gradients, expected_gradients) < 1e-5
    assert max(sizes) <= max(max_logits, model.config.vocab_size)


def test_a_shared_prompt_is_computed_once_and_the_last_layer_for_answers_only() -> None:
    model = random_model("llama")
    seen: dict[str, int] = {}
    for name in ("model.layers.0.mlp", "model.layers.2.mlp.up_proj", "model.layers.2.self_attn.k_proj", "lm_head"):
        model.get_submodule(name).register_forward_hook(
            lambda _module, inputs, _output, name=name: seen.update({name: inputs[0].shape[-2]})
        )
    group = TokenGroup(tuple(range(3, 53)), ((60, 61, 62, 2), (63, 64, 2), (65, 2)))
    score(model, [group], share=True)
    tokens = 50 + 3 + 2 + 1
    answers = 1 + 3 + 2 + 1
    assert seen == {
        "model.layers.0.mlp": tokens,
        "model.layers.2.mlp.up_proj": answers,
        "model.layers.2.self_attn.k_proj": tokens,
        "lm_head": answers,
    }


@pytest.mark.usefixtures("small_blocks")
def test_block_mask_of_the_gpu_and_spans_of_the_cpu_give_the_same_attention() -> None:
    """FlexAttention's own reference computation under our block mask, here on a CPU, against ours."""
    torch.manual_seed(0)
    packed = pack(GROUPS, pad_multiple=128)
    length = len(packed.end_T)
    query, key, value = torch.randn(1, 4, length, 16), torch.randn(1, 2, length, 16), torch.randn(1, 2, length, 16)
    block_mask = attention.make_block_mask(packed.end_T, CPU)
    expected = flex_attention(query, key, value, block_mask=block_mask, enable_gqa=True)
    used = packed.spans[-1].end
    layout = attention.make_layout(packed, CPU)
    found, _ = attention.group_attention(
        nn.Module(), query[:, :, :used], key[:, :, :used], value[:, :, :used], None, layout=layout, scaling=16**-0.5
    )
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(found, expected[:, :, :used].transpose(1, 2), rtol=1e-5, atol=1e-5)


@given(st.integers(0, 10**6))
def test_block_mask_skips_and_trusts_exactly_the_blocks_it_may(seed: int) -> None:
    """Against the whole table of what sees what: a block is skipped when all of it is hidden, full when none is."""
    rng = random.Random(seed)

    def tokens(most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, 6) for _ in range(rng.randint(1, most)))

    head = tokens(200)
    groups = [
        TokenGroup(head + tokens(200), tuple(tokens(40) for _ in range(rng.randint(1, 9))))
        for _ in range(rng.randint(1, 4))
    ]
    end_T = pack(groups, pad_multiple=128).end_T
    mask = attention.make_block_mask(end_T, CPU)
    at = torch.arange(len(end_T))
    seen = ((at <= at[:, None]) & (at[:, None] < end_T)).view(len(end_T) // 128, 128, len(end_T) // 128, 128)
    counts = seen.sum((1, 3))
    for counted, numbers, expected in (
        (mask.kv_num_blocks, mask.kv_indices, (counts > 0) & (counts < 128 * 128)),
        (mask.full_kv_num_blocks, mask.full_kv_indices, counts == 128 * 128),
    ):
        assert counted is not None
        assert numbers is not None
        for row, (number, listed) in enumerate(zip(counted[0, 0].tolist(), numbers[0, 0].tolist(), strict=True)):
            assert set(listed[:number]) == set(expected[row].nonzero()[:, 0].tolist())


def test_logits_that_the_model_caps_are_capped_here_too(share: bool) -> None:
    """Gemma 2 puts its logits through 30 * tanh(logits / 30); here the cap is 2, so that it matters."""
    model = random_model("gemma2", final_logit_softcapping=2.0)
    with torch.no_grad():
        capped = score(model, GROUPS, share=share)
        torch.testing.assert_close(capped, expected_logps(model, GROUPS), rtol=0, atol=1e-4)
        model.config.final_logit_softcapping = None
        assert float((score(model, GROUPS, share=share) - capped).abs()[capped != 0].min()) > 0.01


def test_scores_of_a_bfloat16_model_are_float32(tiny_policy: TinyPolicy, share: bool) -> None:
    with torch.no_grad():
        found = score(plain_policy(tiny_policy.path, None, dtype=torch.bfloat16).eval(), GROUPS, share=share)
        expected = score(plain_policy(tiny_policy.path, None).eval(), GROUPS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0.5)


def refused(model: Any, groups: Sequence[TokenGroup], caplog: pytest.LogCaptureFixture) -> str:
    """The one warning that says why prompts are repeated; scores are right all the same."""
    caplog.clear()
    before = model.config._attn_implementation
    scorer = make_scorer(model, groups)
    assert not scorer.share_prompts
    assert model.config._attn_implementation == before
    with torch.no_grad():
        found = scorer(scorer.batch(groups, CPU))
        torch.testing.assert_close(found, expected_logps(model, groups), rtol=0, atol=1e-4)
    (record,) = caplog.records
    return record.getMessage()


def test_a_sliding_window_shorter_than_the_prompt_repeats_prompts_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    groups = [TokenGroup(tuple(range(3, 23)), ((30, 31, 2), (32, 2)))]
    model = random_model("mistral", sliding_window=8)
    assert refused(model, groups, caplog) == (
        "every response repeats its prompt, which is slower: MistralForCausalLM attends to 8 tokens (sliding_window), "
        "and the longest prompt and response have 23"
    )
    assert make_scorer(random_model("mistral", sliding_window=23), groups).share_prompts


def test_attention_dropout_repeats_prompts(caplog: pytest.LogCaptureFixture) -> None:
    assert "LlamaForCausalLM has attention dropout" in refused(
        random_model("llama", attention_dropout=0.1), GROUPS, caplog
    )


def test_an_architecture_with_another_attention_repeats_prompts(caplog: pytest.LogCaptureFixture) -> None:
    """gpt-oss adds a learned sink to every softmax, which our attention does not know; only numbers show it."""
    torch.manual_seed(0)
    config = GptOssConfig(
        **SIZES, num_local_experts=2, num_experts_per_tok=1, sliding_window=4096, layer_types=["full_attention"] * 3
    )
    model = GptOssForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=0.2)
            if "sinks" in name:
                weight.fill_(3.0)
    assert "GptOssForCausalLM scores differently with a shared prompt" in refused(model, GROUPS, caplog)


def test_a_group_longer_than_the_context_is_refused() -> None:
    groups = [*GROUPS, TokenGroup(tuple(range(3, 15)), ((30, 31, 2), (32, 2)))]
    with pytest.raises(ValueError, match=r"a prompt of 12 tokens and its longest response have 15 tokens, but the mod"):
        make_scorer(random_model("llama", max_position_embeddings=14), groups)
    assert make_scorer(random_model("llama", max_position_embeddings=15), groups).share_prompts


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (CohereForCausalLM, CohereConfig(logit_scale=0.25)),
        (GraniteForCausalLM, GraniteConfig(logits_scaling=8.0)),
    ],
)
def test_an_architecture_that_scales_its_logits_is_refused(model_class: Any, config: Any) -> None:
    """The scorer applies the LM head itself: a factor after it would silently flatten every distribution."""
    for key, value in {**SIZES, "num_hidden_layers": 1, "initializer_range": 1.0}.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"changes its logits after the LM head"):
        make_scorer(model_class(config).eval(), GROUPS)


def test_stopped_sharing_leaves_the_model_as_it_was(tiny_policy: TinyPolicy) -> None:
    model = plain_policy(tiny_policy.path, None).eval()
    ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    ResponseScorer(model, share_prompts=True).stop_sharing()
    assert torch.equal(model(input_ids=ids).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("share_prompts", [True, False])
def test_token_log_probabilities_add_up_to_the_responses(tiny_policy: TinyPolicy, share_prompts: bool) -> None:
    """Row by row in the groups' order, 0 after a response's end, and each as in a pass of its own."""
    scorer = ResponseScorer(plain_policy(tiny_policy.path, tiny_policy.adapters[0]).eval(), share_prompts=share_prompts)
    with torch.no_grad():
        batch = scorer.batch(GROUPS, CPU)
        tokens_SL, sums_BK = scorer.token_logps(batch), scorer(batch)
    rows = iter(tokens_SL)
    for group, sums_K in zip(GROUPS, sums_BK, strict=True):
        for response, total in zip(group.responses, sums_K, strict=False):
            row = next(rows)
            assert not row[len(response) :].any()
            torch.testing.assert_close(row.sum(), total)
            shorter = TokenGroup(group.prompt, (response[:-1],)) if len(response) > 1 else None
            if shorter is not None:
                with torch.no_grad():
                    torch.testing.assert_close(
                        scorer(scorer.batch([shorter], CPU))[0, 0], row[: len(response) - 1].sum(), atol=1e-4, rtol=1e-4
                    )
    assert next(rows, None) is None
