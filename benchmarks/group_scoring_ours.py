"""The model and the tokens of benchmarks/group_scoring.py, and our scorer on them, with shared prompts and without."""

from __future__ import annotations

import random
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from sprec_ray.config.methods import PAIRWISE
from sprec_ray.training.losses import PREFERENCE_LOSSES, REFERENCE_FREE, GroupLogps, LossSettings, preference_loss
from sprec_ray.training.packing import TokenGroup
from sprec_ray.training.scoring import ResponseScorer

CPU = torch.device("cpu")
LOSSES = tuple(PREFERENCE_LOSSES)
VOCABULARY, NUM_EXAMPLES = 5000, 32
INSTRUCTION = 60
"""Tokens with which all prompts begin, as they do with the instruction of the ``alpaca`` template."""
QUOTE = 3
"""The token with which all responses begin."""
PERCENTS = (0, 1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 100)
PROMPT_PERCENTILES = (123, 143, 155, 162, 169, 174, 178, 182, 186, 190, 195, 203, 210, 225, 272)
RESPONSE_PERCENTILES = (5, 5, 7, 8, 10, 12, 12, 13, 14, 15, 17, 19, 21, 26, 52)
GOODREADS_INSTRUCTION = 62
"""Tokens of SPRec's 5,000 Goodreads rows (its train.json), and of the beginning that all their prompts share.

Text of ``TokenEncoder`` with the ``alpaca`` template, by the byte-level BPE of 3,000 that ``models/scratch.py``
learns on titles and prompts, as runs do. Learned on titles alone it spells the instruction out: 157 common tokens of
304. The tails need their own percentiles: straight lines between tenths pad batches of 8 by 17 % and not by 12 %.
"""


def make_model() -> Any:
    """A Llama of 15.0 M parameters with LoRA on all projections; the same weights in every process."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=512,
            intermediate_size=1344,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    return model


def with_lora(model: Any) -> Any:
    """The model with a fresh adapter."""
    torch.manual_seed(1)
    return get_peft_model(model, lora_config())


def lora_config() -> LoraConfig:
    """The adapter of every contender."""
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=modules, task_type="CAUSAL_LM")


def make_groups(num_groups: int, num_negatives: int, *, instruction: int = INSTRUCTION) -> list[TokenGroup]:
    """Prompts of 180 to 260 tokens, responses of 6 to 18."""
    rng = random.Random(0)
    head = _tokens(rng, instruction)
    return [
        TokenGroup(
            head + _tokens(rng, rng.randint(180, 260) - instruction),
            tuple((QUOTE, *_tokens(rng, rng.randint(5, 17))) for _ in range(1 + num_negatives)),
        )
        for _ in range(num_groups)
    ]


def _tokens(rng: random.Random, length: int) -> tuple[int, ...]:
    return tuple(rng.randrange(4, VOCABULARY) for _ in range(length))


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    """AdamW over the adapter."""
    return torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-4)


def group_logps(policy_BK: Tensor, reference_BK: Tensor, counts_BK: Tensor) -> GroupLogps:
    """What a loss is given, with a smoothing of 0.1."""
    smoothing = torch.full((len(policy_BK),), 0.1)
    return GroupLogps(
        policy_BK=policy_BK,
        reference_BK=reference_BK,
        mask_BK=counts_BK > 0,
        num_tokens_BK=counts_BK,
        smoothing_B=smoothing,
    )


def preference_step(scorer: ResponseScorer, groups: Sequence[TokenGroup], optimizer: torch.optim.Optimizer) -> float:
    """The loss of a softmax_dpo step, whose reference is the model without its adapter; with N = 1 that is DPO."""
    model: Any = scorer.model
    batch = scorer.batch(groups, CPU)
    with torch.no_grad(), model.disable_adapter():
        reference_BK = scorer(batch)
    logps = group_logps(scorer(batch), reference_BK, batch.targets.num_tokens_BK)
    return _update(model, preference_loss("softmax_dpo", logps, LossSettings(beta=0.1)).mean(), optimizer)


def sft_step(scorer: ResponseScorer, groups: Sequence[TokenGroup], optimizer: torch.optim.Optimizer) -> float:
    """The loss of an SFT step, per response token."""
    batch = scorer.batch(groups, CPU)
    return _update(scorer.model, -scorer(batch).sum() / batch.targets.num_tokens_BK.sum(), optimizer)


def _update(model: Any, loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def _timed(step: Callable[[Sequence[TokenGroup]], float], groups: Sequence[TokenGroup], batch_size: int) -> float:
    batches = [groups[first : first + batch_size] for first in range(0, len(groups), batch_size)]
    step(batches[0])
    start = time.perf_counter()
    for batch in batches:
        step(batch)
    return len(groups) / (time.perf_counter() - start)


def ours(threads: int, *, num_negatives: int, batch_size: int, share: bool) -> dict[str, float]:
    """Examples per second of preference steps, reference scoring included."""
    torch.set_num_threads(threads)
    scorer = ResponseScorer(with_lora(make_model()), share_prompts=share)
    optimizer = optimizer_of(scorer.model)
    groups = make_groups(NUM_EXAMPLES if share or num_negatives == 1 else 8, num_negatives)
    rate = _timed(lambda batch: preference_step(scorer, batch, optimizer), groups, batch_size)
    return {"examples_per_s": rate}


def ours_sft(threads: int, *, batch_size: int) -> dict[str, float]:
    """Examples per second of SFT steps on rows of Goodreads' lengths."""
    torch.set_num_threads(threads)
    scorer = ResponseScorer(with_lora(make_model()), share_prompts=True)
    optimizer = optimizer_of(scorer.model)
    rate = _timed(lambda batch: sft_step(scorer, batch, optimizer), goodreads_rows(), batch_size)
    return {"examples_per_s": rate}


def goodreads_rows() -> list[TokenGroup]:
    """Rows with the lengths of Goodreads rows, prompts' and responses' in random orders of their own."""
    rng = random.Random(0)
    head = _tokens(rng, GOODREADS_INSTRUCTION)
    num_rows = 4 * NUM_EXAMPLES

    def lengths(percentiles: Sequence[int]) -> list[int]:
        places = [100 * (row + 0.5) / num_rows for row in range(num_rows)]
        rng.shuffle(places)
        found = []
        for place in places:
            above = bisect_right(PERCENTS, place)
            share = (place - PERCENTS[above - 1]) / (PERCENTS[above] - PERCENTS[above - 1])
            found.append(round(percentiles[above - 1] + share * (percentiles[above] - percentiles[above - 1])))
        return found

    return [
        TokenGroup(head + _tokens(rng, prompt - GOODREADS_INSTRUCTION), ((QUOTE, *_tokens(rng, response - 1)),))
        for prompt, response in zip(lengths(PROMPT_PERCENTILES), lengths(RESPONSE_PERCENTILES), strict=True)
    ]


def computed_tokens(threads: int, *, batch_size: int) -> list[float]:
    """Share of padding in rows of Goodreads' lengths, then tokens per example of padded rows, and of our packed row."""
    groups = goodreads_rows()
    batches = [groups[first : first + batch_size] for first in range(0, len(groups), batch_size)]
    scorer = ResponseScorer(make_model(), share_prompts=True)
    shared = sum(scorer.batch(batch, CPU).inputs["input_ids"].numel() for batch in batches)
    real = sum(group.num_positions for group in groups)
    padded = sum(max(group.num_positions for group in batch) * len(batch) for batch in batches)
    return [1 - real / padded, padded / len(groups), shared / len(groups)]


def peak_memory(threads: int, *, share: bool) -> float:
    """MiB by which one preference step with N = 10 raises the resident memory above that of the loaded, warm model."""
    torch.set_num_threads(threads)
    scorer = ResponseScorer(with_lora(make_model()), share_prompts=share)
    optimizer = optimizer_of(scorer.model)
    groups = make_groups(5, 10)
    preference_step(scorer, [TokenGroup(groups[4].prompt[:8], groups[4].responses[:2])], optimizer)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of loading, above the level now
    before = _resident_mib("VmRSS")
    preference_step(scorer, groups[:4], optimizer)
    return _resident_mib("VmHWM") - before


def _resident_mib(field: str) -> float:
    """This process's resident memory now (VmRSS) or at its peak (VmHWM), without what its parent had before exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def exactness(threads: int) -> dict[str, Any]:
    """Relative differences per loss: (loss, gradient) against the plain path, then against transformers' logits."""
    torch.set_num_threads(threads)
    model = with_lora(make_model())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    found: dict[str, Any] = {}
    for loss in LOSSES:
        groups = make_groups(4, 1 if loss in PAIRWISE else 3)
        with torch.no_grad(), model.disable_adapter():
            reference_BK = _transformers_logps(model, groups)
        if loss in REFERENCE_FREE:
            reference_BK = torch.zeros_like(reference_BK)
        results = []
        for score in (shared_logps, _plain_logps, _transformers_logps):
            policy_BK = score(model, groups)
            counts_BK = torch.tensor([[len(response) for response in group.responses] for group in groups])
            logps = group_logps(policy_BK, reference_BK, counts_BK)
            value = preference_loss(loss, logps, LossSettings(beta=0.1, margin=0.5, sft_coef=0.1)).mean()
            gradient = torch.cat([part.flatten() for part in torch.autograd.grad(value, trained)])
            results.append((value.detach(), gradient))
        shared = results[0]
        found[loss] = [
            float((one - other).norm() / other.norm())
            for others in results[1:]
            for one, other in zip(shared, others, strict=True)
        ]
    return found


def shared_logps(model: Any, groups: Sequence[TokenGroup]) -> Tensor:
    """Log-probabilities [B, K] by our scorer; the model is left as it was."""
    scorer = ResponseScorer(model, share_prompts=True)
    logps_BK: Tensor = scorer(scorer.batch(groups, CPU))
    scorer.stop_sharing()
    return logps_BK


def _plain_logps(model: Any, groups: Sequence[TokenGroup]) -> Tensor:
    scorer = ResponseScorer(model)
    logps_BK: Tensor = scorer(scorer.batch(groups, CPU))
    return logps_BK


def _transformers_logps(model: Any, groups: Sequence[TokenGroup]) -> Tensor:
    def logp(prompt: Sequence[int], response: Sequence[int]) -> Tensor:
        ids = torch.tensor([[*prompt, *response]])
        logps_TV = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        total: Tensor = logps_TV.gather(1, ids[0, len(prompt) :, None]).sum()
        return total

    return torch.stack([torch.stack([logp(group.prompt, one) for one in group.responses]) for group in groups])
