from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sprec_ray.config.methods import PhaseConfig, PreferenceConfig
from sprec_ray.config.run import LoraConfig, TrainingConfig
from sprec_ray.training.batches import Step, learning_rate, plan_steps
from sprec_ray.training.packing import TokenGroup
from sprec_ray.training.phase import Phase
from tests.training.fit_process import FitProcesses, run_with_max_logits, run_with_shifted_reference
from tests.training.tiny_training import LORA, TinyPolicy, make_groups, plain_logp, plain_policy

pytestmark = pytest.mark.slow

SFT = PhaseConfig(learning_rate=1e-2, num_epochs=2, global_batch_size=4, micro_batch_size=4, num_warmup_steps=0)
PREFERENCE = PreferenceConfig(
    loss="softmax_dpo",
    beta=0.5,
    learning_rate=1e-2,
    num_epochs=1,
    global_batch_size=4,
    micro_batch_size=4,
    num_warmup_steps=0,
)
SFT_ROWS = make_groups(10)
PREFERENCE_ROWS = make_groups(10, num_rejected=(1, 3, 2))
STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def processes() -> Iterator[FitProcesses]:
    made = FitProcesses(world_size=1)
    yield made
    made.close()


@pytest.fixture
def sft(tiny_policy: TinyPolicy, tmp_path: Path) -> Phase:
    return Phase(
        model_path=tiny_policy.path,
        dtype="float32",
        out=str(tmp_path / "out"),
        seed=5,
        # Clips some steps and leaves others: where it clipped all or none, AdamW would hide a wrong scale of the loss.
        training=TrainingConfig(max_grad_norm=1.5, weight_decay=0.01),
        optimization=SFT,
        lora=LORA,
        init_adapter=tiny_policy.adapters[0],
    )


@pytest.fixture
def preference(sft: Phase, tiny_policy: TinyPolicy) -> Phase:
    return dataclasses.replace(sft, optimization=PREFERENCE, reference_adapter=tiny_policy.adapters[0])


def variant(phase: Phase, name: str, **changes: Any) -> Phase:
    """The phase with other settings and an output folder of its own; keys of sections reach into them."""
    for section in ("training", "optimization"):
        current = getattr(phase, section)
        inner = {key: changes.pop(key) for key in list(changes) if key in {f.name for f in dataclasses.fields(current)}}
        phase = dataclasses.replace(phase, **{section: dataclasses.replace(current, **inner)})
    return dataclasses.replace(phase, out=f"{phase.out}-{name}", **changes)


def adapter_of(phase: Phase) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_file(Path(phase.out) / "adapter_model.safetensors")
    return weights


def assert_same(phase: Phase, expected: Phase, *, atol: float) -> None:
    torch.testing.assert_close(adapter_of(phase), adapter_of(expected), rtol=0, atol=atol)


def assert_same_curve(steps: list[dict[str, float]], expected: list[dict[str, float]], *, atol: float) -> None:
    """All metrics of all steps; but while policy = reference, rounding decides which reward is the larger."""
    for number, (step, expected_step) in enumerate(zip(steps, expected, strict=True)):
        if number == 0:
            step = {name: value for name, value in step.items() if not name.startswith("accuracy")}
        assert step == pytest.approx({name: expected_step[name] for name in step}, abs=atol)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def reference_logps(phase: Phase) -> torch.Tensor:
    return load_file(Path(phase.out) / "reference_logps.safetensors")["reference_logps_BK"]


def plain_logps(path: str, adapter: str | None, groups: list[TokenGroup]) -> torch.Tensor:
    """Log-probabilities [B, K], NaN where a group has no response, by the second implementation."""
    model = plain_policy(path, adapter).eval()
    with torch.no_grad():
        rows = [torch.stack([plain_logp(model, group.prompt, r) for r in group.responses]) for group in groups]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=math.nan)


def plan(groups: list[TokenGroup], *, num_epochs: int) -> list[Step]:
    """The steps of the phases below, whose batches hold 4 rows and whose seed is 5."""
    return plan_steps(
        [group.num_tokens for group in groups],
        num_epochs=num_epochs,
        global_batch_size=4,
        micro_batch_size=4,
        seed=5,
        worker=(0, 1),
    )


def test_sft_equals_a_plain_adamw_loop(processes: FitProcesses, sft: Phase) -> None:
    """Ten rows in batches of 4, 4 and 2: a step's loss is the sum of -log p over its rows / its response tokens.

    The second implementation scores one row at a time, without padding, and uses torch's own AdamW and clipping.
    """
    summary = processes.run(sft, SFT_ROWS)
    model = plain_policy(sft.model_path, sft.init_adapter)
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.0, weight_decay=sft.training.weight_decay)
    steps = plan_steps(
        [row.num_tokens for row in SFT_ROWS],
        num_epochs=2,
        global_batch_size=4,
        micro_batch_size=4,
        seed=5,
        worker=(0, 1),
    )
    losses, norms = [], []
    for index, step in enumerate(steps):
        rows = [SFT_ROWS[row] for row in step.rows]
        total = sum(len(row.responses[0]) for row in rows)
        loss = -sum(plain_logp(model, row.prompt, row.responses[0]) for row in rows) / total
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trainable, sft.training.max_grad_norm)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(index, len(steps), peak=1e-2, num_warmup_steps=0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(norms) < sft.training.max_grad_norm < max(norms)
    assert [len(step.rows) for step in steps] == [4, 4, 2] * 2
    assert [step["loss"] for step in summary["steps"]] == pytest.approx(losses, abs=1e-5)
    trained = {
        name.replace(".default.", "."): weight.detach() for name, weight in model.named_parameters() if "lora_" in name
    }
    torch.testing.assert_close(adapter_of(sft), trained, rtol=0, atol=1e-5)
    assert distance(trained, load_file(Path(str(sft.init_adapter)) / "adapter_model.safetensors")) > 1e-2


def test_weights_weigh_rows_against_each_other(processes: FitProcesses, sft: Phase) -> None:
    """RW: sum_i w_i (-log p_i) / sum_i w_i |y_i| over a batch, so a common factor of all weights changes nothing."""
    rows = [dataclasses.replace(row, weight=float(1 + number % 3)) for number, row in enumerate(SFT_ROWS)]
    twice = [dataclasses.replace(row, weight=2 * row.weight) for row in rows]
    one, two = variant(sft, "one"), variant(sft, "two")
    weighted = processes.run(one, rows)["steps"]
    assert_same_curve(processes.run(two, twice)["steps"], weighted, atol=1e-6)
    assert_same(two, one, atol=1e-6)
    model = plain_policy(sft.model_path, sft.init_adapter)
    batch = [rows[row] for row in plan(rows, num_epochs=1)[0].rows]
    total = sum(row.weight * len(row.responses[0]) for row in batch)
    with torch.no_grad():
        loss = -sum(row.weight * plain_logp(model, row.prompt, row.responses[0]) for row in batch) / total
    assert weighted[0]["loss"] == pytest.approx(float(loss), abs=1e-5)
    assert weighted[0]["loss"] != pytest.approx(processes.run(variant(sft, "plain"), SFT_ROWS)["steps"][0]["loss"])


def test_summary_tells_steps_rates_progress_and_groups(processes: FitProcesses, sft: Phase) -> None:
    """Six steps without warm-up: the rates are 1e-2 * (6 - step) / 6."""
    summary = processes.run(sft, SFT_ROWS)
    rates = [step["learning_rate"] for step in summary["steps"]]
    assert rates == pytest.approx([1e-2 * left / 6 for left in (6, 5, 4, 3, 2, 1)])
    assert [(step, total) for step, total, _ in summary["progress"]] == [(step, 6) for step in range(1, 7)]
    assert [loss for *_, loss in summary["progress"]] == [step["loss"] for step in summary["steps"]]
    assert summary["num_groups"] == 10


def test_canary_is_scored_under_the_written_adapter(processes: FitProcesses, sft: Phase) -> None:
    canary = processes.run(sft, SFT_ROWS)["canary"]
    assert (canary["prompt"], canary["response"]) == (list(SFT_ROWS[0].prompt), list(SFT_ROWS[0].responses[0]))
    logp = plain_logp(plain_policy(sft.model_path, sft.out).eval(), canary["prompt"], canary["response"])
    assert canary["logp"] == pytest.approx(logp.item(), abs=1e-4)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 64])
def test_micro_batch_size_does_not_change_sft(processes: FitProcesses, sft: Phase, micro_batch_size: int) -> None:
    """Micro-batches hold different numbers of tokens, so a mean of means would differ."""
    other = variant(sft, "micro", micro_batch_size=micro_batch_size)
    processes.run(sft, SFT_ROWS)
    processes.run(other, SFT_ROWS)
    assert_same(other, sft, atol=1e-5)


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_micro_batch_size_does_not_change_preference_training(
    processes: FitProcesses, preference: Phase, micro_batch_size: int
) -> None:
    other = variant(preference, "micro", micro_batch_size=micro_batch_size)
    metrics = processes.run(preference, PREFERENCE_ROWS)["steps"]
    other_metrics = processes.run(other, PREFERENCE_ROWS)["steps"]
    assert_same(other, preference, atol=1e-5)
    assert_same_curve(other_metrics, metrics, atol=1e-4)


def test_an_automatic_micro_batch_takes_what_fits(processes: FitProcesses, preference: Phase) -> None:
    """Ten groups of a tiny model fit at once, so it is the whole global batch; training is the same."""
    automatic = variant(preference, "auto", micro_batch_size="auto")
    expected = processes.run(preference, PREFERENCE_ROWS)
    found = processes.run(automatic, PREFERENCE_ROWS)
    assert found["micro_batch_size"] == 4
    assert_same(automatic, preference, atol=0)
    assert_same_curve(found["steps"], expected["steps"], atol=0)


@pytest.mark.parametrize("zero_stage", [0, 3])
@pytest.mark.parametrize("kind", ["sft", "preference"])
def test_gradient_checkpointing_does_not_change_training(
    processes: FitProcesses, sft: Phase, preference: Phase, kind: str, zero_stage: int
) -> None:
    phase, rows = (sft, SFT_ROWS) if kind == "sft" else (preference, PREFERENCE_ROWS)
    other = variant(phase, "checkpointing", gradient_checkpointing=True, zero_stage=zero_stage)
    processes.run(phase, rows)
    processes.run(other, rows)
    assert_same(other, phase, atol=1e-5)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_logits_in_chunks_do_not_change_training(processes: FitProcesses, preference: Phase, zero_stage: int) -> None:
    """Two answering positions at a time; ZeRO 3 gathers the LM head again for each chunk."""
    other = variant(preference, "chunks", zero_stage=zero_stage)
    processes.run(preference, PREFERENCE_ROWS)
    processes.call(run_with_max_logits, other, PREFERENCE_ROWS, 600)
    assert_same(other, preference, atol=1e-4)


@pytest.mark.parametrize("num_rejected", [1, 3])
def test_first_preference_loss_is_log_of_the_group_size(
    processes: FitProcesses, preference: Phase, num_rejected: int
) -> None:
    """Policy = reference makes every reward 0, so softmax_dpo gives log(1 + N), with all margins 0."""
    first = processes.run(preference, make_groups(8, num_rejected=(num_rejected,)))["steps"][0]
    assert first["loss"] == pytest.approx(math.log(1 + num_rejected), abs=1e-5)
    assert first["margin"] == pytest.approx(0, abs=1e-5)


def test_preference_training_raises_the_margin(processes: FitProcesses, preference: Phase) -> None:
    steps = processes.run(variant(preference, "long", num_epochs=6), make_groups(4, num_rejected=(2,)))["steps"]
    assert steps[-1]["margin"] > 1
    assert steps[-1]["loss"] < steps[0]["loss"] / 2


def test_first_loss_catches_a_wrong_reference(processes: FitProcesses, preference: Phase) -> None:
    with pytest.raises(RuntimeError, match="reference log-probabilities are not those of this policy"):
        processes.call(run_with_shifted_reference, preference, PREFERENCE_ROWS, 0.5)


def test_first_loss_is_not_checked_against_another_reference(
    processes: FitProcesses, preference: Phase, tiny_policy: TinyPolicy
) -> None:
    other = variant(preference, "other", reference_adapter=tiny_policy.adapters[1])
    first = processes.run(other, PREFERENCE_ROWS)["steps"][0]
    assert abs(first["margin"]) > 1e-2


@pytest.mark.parametrize("zero_stage", [0, 3])
@pytest.mark.parametrize("reference", ["base", "init", "other"])
def test_reference_is_the_policy_it_is_said_to_be(
    processes: FitProcesses, preference: Phase, tiny_policy: TinyPolicy, reference: str, zero_stage: int
) -> None:
    """The file of reference log-probabilities against PEFT's own; afterwards the policy is the initial one again."""
    adapter = {"base": None, "init": tiny_policy.adapters[0], "other": tiny_policy.adapters[1]}[reference]
    phase = variant(preference, reference, reference_adapter=adapter, zero_stage=zero_stage)
    first = processes.run(phase, PREFERENCE_ROWS)["steps"][0]
    expected = plain_logps(tiny_policy.path, adapter, PREFERENCE_ROWS)
    torch.testing.assert_close(reference_logps(phase), expected, rtol=0, atol=1e-4, equal_nan=True)
    policy = plain_logps(tiny_policy.path, tiny_policy.adapters[0], PREFERENCE_ROWS)
    rows = plan(PREFERENCE_ROWS, num_epochs=1)[0].rows
    assert first["logp_chosen"] == pytest.approx(float(policy[list(rows), 0].mean()), abs=1e-4)
    rewards = 0.5 * (policy - expected)
    losses = torch.logsumexp(rewards.nan_to_num(nan=-torch.inf), 1) - rewards[:, 0]
    assert first["loss"] == pytest.approx(float(losses[list(rows)].mean()), abs=1e-4)


def test_references_are_scored_once_for_all_phases_that_share_them(
    processes: FitProcesses, preference: Phase, tmp_path: Path
) -> None:
    """A second phase with another beta reads the first one's references: here such as it could not have scored."""
    cached = dataclasses.replace(preference, cache=str(tmp_path / "cache"), reference_adapter=None)
    processes.run(cached, PREFERENCE_ROWS)
    (file,) = (tmp_path / "cache").iterdir()
    torch.testing.assert_close(
        load_file(file)["reference_logps_BK"], reference_logps(cached), rtol=0, atol=0, equal_nan=True
    )
    again = variant(cached, "again", beta=0.7)
    processes.run(again, PREFERENCE_ROWS)
    save_file({"reference_logps_BK": reference_logps(cached) - 100.0}, file)
    moved = variant(cached, "moved", beta=0.7)
    rows = plan(PREFERENCE_ROWS, num_epochs=1)[0].rows
    first = processes.run(moved, PREFERENCE_ROWS)["steps"][0]
    assert first["reward_chosen"] == pytest.approx(
        0.7
        * float(
            (
                plain_logps(moved.model_path, moved.init_adapter, PREFERENCE_ROWS)[list(rows), 0]
                - reference_logps(cached)[list(rows), 0]
                + 100.0
            ).mean()
        ),
        abs=1e-3,
    )
    processes.run(variant(cached, "other rows"), PREFERENCE_ROWS[:-1])
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_cached_reference_that_is_not_a_number_stops_the_phase(
    processes: FitProcesses, preference: Phase, tmp_path: Path
) -> None:
    cached = dataclasses.replace(preference, cache=str(tmp_path / "cache"))
    processes.run(cached, PREFERENCE_ROWS)
    (file,) = (tmp_path / "cache").iterdir()
    save_file({"reference_logps_BK": reference_logps(cached) * math.nan}, file)
    with pytest.raises(ValueError, match=r"not a number \(group 0\); delete it and run the same command again"):
        processes.run(variant(cached, "nan"), PREFERENCE_ROWS)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("dpo", math.log(2)),
        ("softmax_dpo", math.log(2)),
        ("dmpo", math.log(2)),
        ("rosepo", math.log(2)),
        ("ipo", 1.0),  # (1 / (2 * 0.5))^2
    ],
)
def test_every_loss_starts_at_its_value_for_policy_equal_to_reference(
    processes: FitProcesses, preference: Phase, loss: str, expected: float
) -> None:
    first = processes.run(variant(preference, loss, loss=loss), make_groups(8, num_rejected=(1,)))["steps"][0]
    assert first["loss"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("loss", ["simpo", "dmpo_pairs"])
def test_losses_without_a_reference_score_none(processes: FitProcesses, preference: Phase, loss: str) -> None:
    phase = variant(preference, loss, loss=loss)
    groups = make_groups(8, num_rejected=(1,))
    first = processes.run(phase, groups)["steps"][0]
    assert first["reward_chosen"] == pytest.approx(0.5 * first["logp_chosen"], abs=1e-4)
    assert not (Path(phase.out) / "reference_logps.safetensors").exists()


def test_sft_coef_adds_the_chosen_likelihood(processes: FitProcesses, preference: Phase) -> None:
    groups = make_groups(4, num_rejected=(2,))
    first = processes.run(variant(preference, "sft", sft_coef=0.25), groups)["steps"][0]
    logps_B = plain_logps(preference.model_path, preference.init_adapter, groups)[:, 0]
    nll = -sum(float(logp) / len(group.responses[0]) for logp, group in zip(logps_B, groups, strict=True)) / 4
    assert first["loss"] == pytest.approx(math.log(3) + 0.25 * nll, abs=1e-4)


def test_smoothing_is_the_groups_own_or_the_configured_one(processes: FitProcesses, preference: Phase) -> None:
    """With margin 0 smoothing changes nothing, so the reference is another adapter."""
    groups = make_groups(4, num_rejected=(1,))
    half = [dataclasses.replace(group, smoothing=0.2) if row % 2 else group for row, group in enumerate(groups)]
    phase = dataclasses.replace(preference, reference_adapter=None)
    found = [
        processes.run(variant(phase, name, loss="rosepo", label_smoothing=smoothing), rows)["steps"][0]["loss"]
        for name, smoothing, rows in (
            ("none", 0.0, groups),
            ("all", 0.2, groups),
            ("half", 0.0, half),
            ("own", 0.2, half),
        )
    ]
    assert found[0] != pytest.approx(found[1], abs=1e-3)
    assert min(found[:2]) < found[2] < max(found[:2])
    assert found[3] == pytest.approx(found[1], abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "num_rejected", "message"),
    [
        ("softmax_dpo", (1, 0), r"group 1 has no rejected response; preference.loss=softmax_dpo needs one"),
        ("dpo", (1, 2), r"group 1 has 2 rejected responses, but preference.loss=dpo takes one"),
    ],
)
def test_groups_that_a_loss_cannot_take_are_refused_first(
    processes: FitProcesses, preference: Phase, loss: str, num_rejected: tuple[int, ...], message: str
) -> None:
    """Before a model is loaded: there is none at this path."""
    phase = variant(preference, "refused", model_path="/nowhere", loss=loss)
    with pytest.raises(ValueError, match=message):
        processes.run(phase, make_groups(4, num_rejected=num_rejected))


def test_a_fresh_adapter_starts_at_the_base_model(processes: FitProcesses, preference: Phase) -> None:
    phase = variant(preference, "fresh", init_adapter=None, reference_adapter=None)
    first = processes.run(phase, make_groups(8, num_rejected=(1,)))["steps"][0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("zero_stage", STAGES[1:])
@pytest.mark.parametrize("kind", ["sft", "preference"])
def test_zero_stage_does_not_change_training(
    processes: FitProcesses, sft: Phase, preference: Phase, kind: str, zero_stage: int
) -> None:
    phase, rows = (sft, SFT_ROWS) if kind == "sft" else (preference, PREFERENCE_ROWS)
    phase = variant(phase, "0", micro_batch_size=2)
    other = variant(phase, "zero", zero_stage=zero_stage)
    processes.run(phase, rows)
    processes.run(other, rows)
    assert_same(other, phase, atol=1e-4)


@pytest.mark.parametrize("zero_stage", STAGES)
def test_a_bfloat16_model_keeps_a_float32_adapter(
    processes: FitProcesses, preference: Phase, tiny_policy: TinyPolicy, zero_stage: int
) -> None:
    """Updates of 1e-6 vanish in bfloat16, whose neighbours of 0.1 are 5e-4 apart; in float32 they arrive."""
    phase = variant(preference, "bf16", dtype="bfloat16", zero_stage=zero_stage, learning_rate=1e-6, micro_batch_size=2)
    processes.run(phase, PREFERENCE_ROWS)
    weights = adapter_of(phase)
    initial = load_file(Path(tiny_policy.adapters[0]) / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert 5e-7 < distance(weights, initial) < 5e-6
    expected = plain_logps(tiny_policy.path, tiny_policy.adapters[0], PREFERENCE_ROWS)
    found = reference_logps(phase)
    assert float((found - expected).nan_to_num().abs().max()) > 1e-4  # computed in bfloat16, not upcast
    torch.testing.assert_close(found, expected, rtol=0, atol=0.5, equal_nan=True)


@pytest.mark.parametrize("kind", ["sft", "preference"])
def test_same_seed_writes_the_same_bytes(processes: FitProcesses, sft: Phase, preference: Phase, kind: str) -> None:
    """With dropout, which also has to be seeded."""
    phase, rows = (sft, SFT_ROWS) if kind == "sft" else (preference, PREFERENCE_ROWS)
    phase = variant(phase, "first", lora=dataclasses.replace(LORA, dropout=0.3))
    again, another = variant(phase, "again"), variant(phase, "another", seed=6)
    for one in (phase, again, another):
        processes.run(one, rows)
    contents = [(Path(one.out) / "adapter_model.safetensors").read_bytes() for one in (phase, again, another)]
    assert contents[0] == contents[1] != contents[2]


def test_dropout_acts_in_sft_only(processes: FitProcesses, sft: Phase, preference: Phase) -> None:
    lora = LoraConfig(rank=LORA.rank, alpha=LORA.alpha, dropout=0.5)
    for phase in (sft, preference):
        phase = variant(phase, type(phase.optimization).__name__)
        dropped = variant(phase, "dropout", lora=lora)
        processes.run(phase, SFT_ROWS if phase.preference is None else PREFERENCE_ROWS)
        processes.run(dropped, SFT_ROWS if phase.preference is None else PREFERENCE_ROWS)
        gap = distance(adapter_of(phase), adapter_of(dropped))
        assert (gap > 1e-3) if phase.preference is None else (gap == 0)


def test_the_whole_model_can_be_trained(processes: FitProcesses, sft: Phase) -> None:
    """Without LoRA settings the phase pre-trains the model itself and writes it as a transformers folder."""
    phase = variant(sft, "whole", lora=None, init_adapter=None, learning_rate=1e-2, num_epochs=10)
    summary = processes.run(phase, SFT_ROWS)
    assert summary["steps"][-1]["loss"] < summary["steps"][0]["loss"] / 2
    canary = summary["canary"]
    written = AutoModelForCausalLM.from_pretrained(phase.out).eval()
    logp = plain_logp(written, canary["prompt"], canary["response"])
    assert canary["logp"] == pytest.approx(logp.item(), abs=1e-3)


def test_a_loss_that_is_not_a_number_stops_the_phase(
    processes: FitProcesses, sft: Phase, tiny_policy: TinyPolicy, tmp_path: Path
) -> None:
    weights = load_file(Path(tiny_policy.adapters[0]) / "adapter_model.safetensors")
    save_file({name: weight * math.nan for name, weight in weights.items()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(RuntimeError, match="the loss became nan; lower the learning rate"):
        processes.run(variant(sft, "nan", init_adapter=str(tmp_path)), SFT_ROWS)
    assert not (Path(f"{sft.out}-nan") / "adapter_model.safetensors").exists()


def test_number_of_workers_does_not_change_training(processes: FitProcesses, sft: Phase, preference: Phase) -> None:
    """Two processes against one, with a last batch of 1 row, of which the second worker has none."""
    pair = FitProcesses(world_size=2)
    try:
        for phase, rows in ((sft, SFT_ROWS[:9]), (preference, PREFERENCE_ROWS[:9])):
            one = variant(phase, f"{type(phase.optimization).__name__}-one", micro_batch_size=1)
            summary = processes.run(one, rows)
            for zero_stage, micro_batch_size in ((0, 1), (3, 1), (0, 2)):
                name = f"two-{zero_stage}-{micro_batch_size}"
                two = variant(one, name, zero_stage=zero_stage, micro_batch_size=micro_batch_size)
                summary_of_two = pair.run(two, rows)
                assert_same(two, one, atol=1e-4)
                assert_same_curve(summary_of_two["steps"], summary["steps"], atol=1e-3)
                if phase.preference is not None:
                    torch.testing.assert_close(
                        reference_logps(two), reference_logps(one), rtol=0, atol=1e-4, equal_nan=True
                    )
    finally:
        pair.close()
