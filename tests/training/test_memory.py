"""The simulated memory of a training step, against what tensors of real steps hold."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from sprec_ray.config.methods import PhaseConfig, PreferenceConfig
from sprec_ray.config.run import TrainingConfig
from sprec_ray.models.adapters import attach_adapter
from sprec_ray.training.memory import GIB, LiveBytes, MemoryPlan, choose_micro_batch_size, largest_group, plan_memory
from sprec_ray.training.packing import TokenGroup
from sprec_ray.training.phase import Phase, Worker
from sprec_ray.training.scoring import MAX_LOGITS, ResponseScorer
from tests.training.tiny_training import LORA

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def llama(**changes: Any) -> LlamaConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    return LlamaConfig(**{"vocab_size": 300, "num_key_value_heads": 2, **sizes, **changes})


def make_phase(*, dtype: str = "float32", quantization: str = "none", **training: Any) -> Phase:
    return Phase(
        model_path="",
        dtype=dtype,
        out="",
        seed=0,
        training=TrainingConfig(**training),
        optimization=PreferenceConfig(micro_batch_size="auto"),
        lora=LORA,
        quantization=quantization,
    )


def make_group(num_rejected: int, *, prompt: int = 70, response: int = 9, base: int = 3) -> TokenGroup:
    beginnings = iter(range(base, 300))
    return TokenGroup(
        (next(beginnings),) * prompt, tuple((next(beginnings),) * response for _ in range(1 + num_rejected))
    )


def plan(phase: Phase, num_rejected: int = 3, *, config: Any = None, num_workers: int = 1, **how: Any) -> MemoryPlan:
    group = make_group(num_rejected)
    return plan_memory(phase, config or llama(), group, num_workers=num_workers, **{"on_gpu": False, **how})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("in_rows", [False, True])
def test_a_real_step_holds_what_the_plan_says(dtype: str, gradient_checkpointing: bool, in_rows: bool) -> None:
    """With attention dropout prompts cannot be shared: every response is a row."""
    config = llama(attention_dropout=0.1) if in_rows else llama()
    phase = make_phase(dtype=dtype, gradient_checkpointing=gradient_checkpointing)
    planned = plan(phase, config=config)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    scorer = ResponseScorer(attach_adapter(model, LORA, dropout=0.0, seed=0), share_prompts=not in_rows).train()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    groups = [make_group(3, base=3 + 5 * number) for number in range(3)]
    scorer(scorer.batch(groups, CPU)).sum().backward()
    parameters = list(scorer.parameters())
    with LiveBytes([*parameters, *(p.grad for p in parameters if p.grad is not None), *scorer.buffers()]) as live:
        scorer(scorer.batch(groups, CPU)).sum().backward()
    assert planned.activations(3) == pytest.approx(live.peak, rel=0.06 if in_rows else 0.01)


def test_live_bytes_end_with_the_tensor() -> None:
    with LiveBytes([]) as live:
        first = torch.zeros(1000)
        view = first[10:]
        assert live.peak == 4000
        del first
        second = torch.zeros(500)
        assert live.peak == 6000
        del view, second
        torch.zeros(1400)
    assert live.peak == 6000


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_memory_grows_linearly_with_groups(on_gpu: bool, gradient_checkpointing: bool) -> None:
    planned = plan(make_phase(gradient_checkpointing=gradient_checkpointing), on_gpu=on_gpu)
    four, eight, sixteen = (planned.activations(size) for size in (4, 8, 16))
    assert sixteen - eight == pytest.approx(2 * (eight - four), rel=0.05)


def test_logits_of_a_long_sequence_are_bounded() -> None:
    """Eight times the vocabulary adds at most the chunks that scoring allows itself."""
    groups = 64
    small, large = (
        plan(make_phase(), config=llama(vocab_size=size, tie_word_embeddings=True)) for size in (50_000, 400_000)
    )
    assert large.weights - small.weights == 350_000 * 32 * 4
    assert large.activations(groups) <= small.activations(groups) + 3 * 4 * MAX_LOGITS


def test_more_negatives_leave_room_for_fewer_groups() -> None:
    available = plan(make_phase(), 1, on_gpu=True).peak(12)
    found = [plan(make_phase(), count, on_gpu=True).largest_micro_batch(available, most=16) for count in (1, 3, 10)]
    assert found[0] == 12
    assert found == sorted(set(found), reverse=True)


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    planned = plan(make_phase())
    for size in (1, 5):
        available = planned.peak(size)
        assert planned.largest_micro_batch(available, most=6) == size
        assert planned.largest_micro_batch(available + 1, most=size) == size


def test_what_does_not_fit_is_refused_with_remedies() -> None:
    with pytest.raises(ValueError, match=r"one group needs .* GiB are free; set training.gradient_checkpointing=true"):
        plan(make_phase()).largest_micro_batch(1000, most=8)


def test_zero_divides_what_it_divides() -> None:
    """T bytes are trained: gradients and two moments are 3 T; ZeRO adds a copy of weights and of gradients."""
    trained = plan(make_phase()).optimizer // 3
    shares = {stage: plan(make_phase(zero_stage=stage), num_workers=4) for stage in (0, 1, 2, 3)}
    assert [shares[stage].optimizer for stage in (0, 1, 2, 3)] == [3 * trained, *[2 * trained] * 3]
    assert shares[0].weights == shares[2].weights
    assert shares[3].weights == shares[0].weights // 4 + shares[0].weights


def test_4_bits_pack_the_linear_layers_but_the_head() -> None:
    whole, packed = (plan(make_phase(dtype="bfloat16", quantization=name)) for name in ("none", "nf4"))
    linear = 3 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    assert whole.weights - packed.weights == pytest.approx(linear * (2 - 4.127 / 8), abs=1)
    assert packed.unpacked == 32 * 64 * 2


def test_nothing_is_allocated() -> None:
    """64 billion weights, on any machine; the global random state stays."""
    before = torch.get_rng_state()
    config = llama(hidden_size=16384, intermediate_size=65536, num_hidden_layers=16, num_attention_heads=128)
    planned = plan(make_phase(dtype="bfloat16"), config=config, on_gpu=True)
    assert planned.weights > 100 * GIB
    assert planned.activations(1) > 0
    assert torch.equal(before, torch.get_rng_state())


def test_no_group_has_more_tokens_than_the_largest() -> None:
    groups = [make_group(1, prompt=40), make_group(3, prompt=5), make_group(2, prompt=30, response=4)]
    assert largest_group(groups) == dataclasses.replace(groups[1], prompt=groups[0].prompt)


@pytest.mark.parametrize(("free", "expected"), [(10**12, 4), (0.0, None)])
def test_training_takes_what_fits_up_to_its_share_of_a_step(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, free: float, expected: int | None
) -> None:
    llama().save_pretrained(tmp_path)
    monkeypatch.setattr("sprec_ray.training.memory.available_bytes", lambda worker: int(free))
    optimization = PhaseConfig(global_batch_size=7, micro_batch_size="auto")
    phase = dataclasses.replace(make_phase(), model_path=str(tmp_path), optimization=optimization)
    if expected is None:
        with pytest.raises(ValueError, match=r"0.00 GiB are free"):
            choose_micro_batch_size(phase, [make_group(0)], Worker(0, 2, CPU))
    else:
        assert choose_micro_batch_size(phase, [make_group(0)], Worker(0, 2, CPU)) == expected
