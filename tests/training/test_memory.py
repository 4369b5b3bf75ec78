from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from sprec_ray.config import LoraConfig, PreferenceConfig, TrainingConfig
from sprec_ray.training import memory
from sprec_ray.training.adapters import attach_adapter
from sprec_ray.training.memory import MemoryPlan, choose_micro_batch_size, plan_memory
from sprec_ray.training.packing import TokenGroup
from sprec_ray.training.phase import Phase, Worker
from sprec_ray.training.scoring import MAX_LOGITS, ResponseScorer

CPU = torch.device("cpu")
PHASE = Phase(
    model_path="",
    dtype="float32",
    out="",
    seed=0,
    training=TrainingConfig(),
    optimization=PreferenceConfig(global_batch_size=64, micro_batch_size="auto"),
    lora=LoraConfig(rank=4, target_modules=("q_proj", "down_proj")),
)


def llama(**changes: Any) -> LlamaConfig:
    sizes = {
        "vocab_size": 500,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }
    return LlamaConfig(**{**sizes, **changes})


def group(*, prompt: int = 100, response: int = 10, negatives: int = 3) -> TokenGroup:
    return TokenGroup((1,) * prompt, ((1,) * response,) * (1 + negatives))


def plan(config: LlamaConfig | None = None, *, workers: int = 1, training: Any = None, **changes: Any) -> MemoryPlan:
    phase = dataclasses.replace(PHASE, training=training or PHASE.training, **changes)
    return plan_memory(phase, config or llama(), group(), num_workers=workers)


@pytest.mark.parametrize(("negatives", "num_groups"), [(0, 1), (3, 3), (6, 2)])
def test_kept_bytes_are_those_of_a_real_forward_pass(negatives: int, num_groups: int) -> None:
    """On the meta device against the CPU, whose attention also keeps what it puts side by side of keys and values."""
    model = attach_adapter(AutoModelForCausalLM.from_config(llama()), PHASE.lora, dropout=0.0, seed=0)  # type: ignore[arg-type]
    scorer = ResponseScorer(model, share_prompts=True)
    parameters = {weight.untyped_storage()._cdata for weight in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() and tensor.shape[-1] != 500:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    groups = memory._apart([group(negatives=negatives)] * num_groups)
    real = [
        TokenGroup(tuple(t % 500 for t in one.prompt), tuple(tuple(t % 500 for t in r) for r in one.responses))
        for one in groups
    ]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scorer(scorer.batch(real, CPU))
    measured = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in parameters)
    with torch.device("meta"):
        model = attach_adapter(AutoModelForCausalLM.from_config(llama()), PHASE.lora, dropout=0.0, seed=0)  # type: ignore[arg-type]
    planned = ResponseScorer(model, share_prompts=True)
    planned.causal_lm.set_attn_implementation(memory._ATTENTION)
    assert memory._kept(planned, groups) == pytest.approx(measured, rel=0.12)


def test_weights_and_trained_bytes_by_hand() -> None:
    """Embedding 500 x 64; a layer 64 x (64 + 32 + 32 + 64) + 3 x 64 x 160 and two norms; a last norm. Rank 4."""
    weights = 500 * 64 + 3 * (64 * 192 + 3 * 64 * 160 + 2 * 64) + 64
    adapter = 3 * 4 * ((64 + 64) + (160 + 64))
    assert (plan().weights, plan().trained) == (4 * weights, 16 * adapter)
    assert plan(dtype="bfloat16").weights == 2 * weights
    assert plan(dtype="bfloat16").trained == 16 * adapter
    linear = 3 * (64 * 192 + 3 * 64 * 160)
    assert plan(dtype="bfloat16", quantization="nf4").weights == pytest.approx(
        2 * (weights - linear) + 0.516 * linear, 1e-3
    )
    assert plan(lora=None).trained == 16 * weights


@pytest.mark.parametrize(("stage", "share"), [(0, 16), (1, 4 + 4 + 8 / 4), (2, 4 + 4 / 4 + 8 / 4), (3, 16 / 4)])
def test_zero_divides_among_four_workers(stage: Any, share: float) -> None:
    one, four = plan(), plan(workers=4, training=TrainingConfig(zero_stage=stage))
    assert four.trained == one.trained * share / 16
    assert four.weights == (one.weights / 4 if stage == 3 else one.weights)


def test_memory_of_a_group_does_not_grow_with_the_vocabulary() -> None:
    """More weights and more logits, but these at most MAX_LOGITS, whatever the number of groups."""
    small, large = plan(), plan(llama(vocab_size=128_000))
    assert large.per_group == small.per_group
    assert large.peak(10**6) - large.peak(10**6 - 1) == pytest.approx(memory.MARGIN * large.per_group, rel=1e-6)
    logits = large.peak(10**6) - large.weights - large.trained - memory.MARGIN * 10**6 * large.per_group
    assert logits == pytest.approx(memory.MARGIN * memory.LOGIT_BYTES * MAX_LOGITS, rel=1e-3)


def test_longer_groups_with_more_negatives_take_more() -> None:
    per_group = [
        plan_memory(PHASE, llama(), one, num_workers=1).per_group
        for one in (group(negatives=0), group(negatives=1), group(negatives=10), group(negatives=10, prompt=300))
    ]
    assert per_group == sorted(set(per_group))


def test_gradient_checkpointing_takes_less() -> None:
    assert plan(training=TrainingConfig(gradient_checkpointing=True)).per_group < 0.6 * plan().per_group


def test_repeated_prompts_take_more() -> None:
    """A sliding window shorter than the rows: every response has a row of its own."""
    from transformers import MistralConfig

    sizes = {key: getattr(llama(), key) for key in ("vocab_size", "hidden_size", "intermediate_size")}
    window = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    shared = plan_memory(PHASE, MistralConfig(**sizes, **window, sliding_window=200), group(), num_workers=1)
    repeated = plan_memory(PHASE, MistralConfig(**sizes, **window, sliding_window=50), group(), num_workers=1)
    assert repeated.per_group > 2.5 * shared.per_group


def test_the_largest_micro_batch_is_the_last_that_fits() -> None:
    made = plan()
    for size in (1, 7, 63):
        assert made.largest_micro_batch(made.peak(size), most=64) == size
        assert made.largest_micro_batch(made.peak(size + 1) - 1, most=64) == size
    assert made.largest_micro_batch(10**15, most=64) == 64


def test_a_model_that_does_not_fit_is_one_sentence_with_remedies() -> None:
    made = plan()
    with pytest.raises(
        ValueError, match=r"a micro-batch of one group needs .* GiB, and .* GiB are free; set training.gr"
    ):
        made.largest_micro_batch(made.peak(1) - 1, most=64)


def test_a_phase_takes_the_largest_that_the_free_memory_holds(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the free memory, by two workers, for its longest group."""
    llama().save_pretrained(tmp_path)
    phase = dataclasses.replace(PHASE, model_path=str(tmp_path))
    longest = group(prompt=140)
    expected = plan_memory(phase, llama(), longest, num_workers=2)

    class Free:
        available = 8 * expected.peak(9)

    monkeypatch.setattr(memory.psutil, "virtual_memory", Free)
    assert choose_micro_batch_size(phase, [group(), longest], Worker(0, 2, CPU)) == 9
    Free.available = 10**15
    assert choose_micro_batch_size(phase, [group(), longest], Worker(0, 2, CPU)) == 32
