"""The model and the tokens of benchmarks/group_scoring.py, and our scorer on them, with shared prompts and without."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from sprec_ray.training.losses import (
    PAIRWISE,
    PREFERENCE_LOSSES,
    REFERENCE_FREE,
    GroupLogps,
    LossSettings,
    preference_loss,
)
from sprec_ray.training.packing import TokenGroup
from sprec_ray.training.scoring import ResponseScorer

CPU = torch.device("cpu")
LOSSES = tuple(PREFERENCE_LOSSES)
VOCABULARY, NUM_EXAMPLES = 5000, 32
INSTRUCTION = 60
"""Tokens with which all prompts begin, as they do with the instruction of the ``alpaca`` template."""
QUOTE = 3
"""The token with which all responses begin."""
PROMPT_QUANTILES = (123, 162, 169, 174, 178, 182, 186, 190, 195, 203, 264)
RESPONSE_QUANTILES = (5, 8, 10, 12, 12, 14, 14, 15, 17, 19, 52)
"""Tenths of the tokens of SPRec's 5,000 Goodreads rows: ``alpaca`` template, whose beginning that all share takes 62
tokens, and a byte-level BPE of 3,000 learned on titles and prompts."""


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


def preference_step(scorer: ResponseScorer, groups: Sequence[TokenGroup], optimizer: torch.optim.Optimizer) -> None:
    """Score the reference, which is the model without its adapter, and train on softmax_dpo."""
    model: Any = scorer.model
    batch = scorer.batch(groups, CPU)
    with torch.no_grad(), model.disable_adapter():
        reference_BK = scorer(batch)
    logps = group_logps(scorer(batch), reference_BK, batch.targets.num_tokens_BK)
    preference_loss("softmax_dpo", logps, LossSettings(beta=0.1)).mean().backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def _timed(step: Callable[[Sequence[TokenGroup]], None], groups: Sequence[TokenGroup], batch_size: int) -> float:
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

    def step(groups: Sequence[TokenGroup]) -> None:
        batch = scorer.batch(groups, CPU)
        (-scorer(batch).sum() / batch.targets.num_tokens_BK.sum()).backward()
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return {"examples_per_s": _timed(step, goodreads_rows(), batch_size)}


def goodreads_rows() -> list[TokenGroup]:
    """Rows with the lengths of Goodreads rows in random order."""
    rng = random.Random(0)
    head = _tokens(rng, INSTRUCTION)

    def length(quantiles: Sequence[int]) -> int:
        place = rng.random() * (len(quantiles) - 1)
        low, high = quantiles[int(place)], quantiles[int(place) + 1]
        return round(low + (place - int(place)) * (high - low))

    return [
        TokenGroup(
            head + _tokens(rng, length(PROMPT_QUANTILES) - INSTRUCTION),
            ((QUOTE, *_tokens(rng, length(RESPONSE_QUANTILES) - 1)),),
        )
        for _ in range(4 * NUM_EXAMPLES)
    ]


def peak_memory(threads: int, *, share: bool) -> float:
    """MiB by which the peak of the resident memory rises in one preference step with N = 10."""
    torch.set_num_threads(threads)
    scorer = ResponseScorer(with_lora(make_model()), share_prompts=share)
    optimizer = optimizer_of(scorer.model)
    groups = make_groups(5, 10)
    preference_step(scorer, [TokenGroup(groups[4].prompt[:8], groups[4].responses[:2])], optimizer)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    preference_step(scorer, groups[:4], optimizer)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


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
