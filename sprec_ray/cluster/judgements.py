"""What workers do with answers about titles that prompts name: make tokens of them, and score them under a policy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from sprec_ray.cluster.parcel import Parcel
from sprec_ray.config import LoraConfig
from sprec_ray.data.pair_prompts import render_judgement, render_judgement_prompt
from sprec_ray.data.tokens import TokenEncoder
from sprec_ray.training.packing import TokenGroup
from sprec_ray.types import JudgementGroup, PreferenceGroup

if TYPE_CHECKING:
    from sprec_ray.cluster.worker import TextSettings

_MAX_TOKENS = 8192
"""Tokens of prompts and responses in one forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTask:
    """Score given answers under a policy; the summary holds ``logps``, per group and answer its tokens' in nats."""

    model_path: str
    dtype: str
    trust_remote_code: bool
    adapter: str | None
    lora: LoraConfig
    groups: tuple[JudgementGroup, ...] | tuple[PreferenceGroup, ...]
    text: TextSettings
    quantization: str = "none"
    parcels: tuple[Parcel, ...] = ()


def judgement_tokens(row: JudgementGroup, encoder: TokenEncoder) -> TokenGroup:
    """The tokens of a row: every answer whole, before each its own prompt with as much history as there is room for."""
    responses = tuple(tuple(encoder.ended(render_judgement(it, template=encoder.template))) for it in row.answers)
    room = encoder.room(responses)
    prompts = []
    for candidates in row.candidates:
        render = partial(render_judgement_prompt, candidates=candidates, template=encoder.template, noun=encoder.noun)
        prompts.append(tuple(encoder.fitted(row.history, render, room=room)))
    return TokenGroup(prompts[0], responses, own_prompts=tuple(prompts) if len(prompts) > 1 else None)


def score(
    task: ScoreTask,
    worker: Any,
    place: Callable[[Any], Any],
    tokens: Callable[[Any, TokenEncoder], TokenGroup] = judgement_tokens,
) -> dict[str, Any]:
    """Every worker scores its share of the groups, alike in length; all have all of them afterwards, in order.

    ``tokens`` makes tokens of a group.
    """
    from transformers import AutoTokenizer

    from sprec_ray.training.adapters import load_policy
    from sprec_ray.training.scoring import make_scorer

    started = time.monotonic()
    model_path = place(task.model_path)
    model = load_policy(
        model_path,
        place(task.adapter),
        task.lora,
        dtype=task.dtype,
        quantization=task.quantization,
        device=worker.device,
        trust_remote_code=task.trust_remote_code,
    )
    tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=task.trust_remote_code)
    encoder = task.text.encoder(tokenizer)
    groups = [tokens(row, encoder) for row in task.groups]
    scorer = make_scorer(model, groups)
    order = sorted(range(len(groups)), key=lambda index: groups[index].num_tokens)
    mine = order[worker.rank :: worker.world_size]
    scored: dict[int, list[list[float]]] = {}
    with torch.no_grad():
        for batch in _batches(mine, groups):
            chosen = [groups[index] for index in batch]
            rows = iter(scorer.token_logps(scorer.batch(chosen, worker.device)).tolist())
            for index, group in zip(batch, chosen, strict=True):
                scored[index] = [next(rows)[: len(response)] for response in group.responses]
    shards = [scored]
    if worker.world_size > 1:
        shards = [{} for _ in range(worker.world_size)]
        dist.all_gather_object(shards, scored)
    whole = {index: logps for shard in shards for index, logps in shard.items()}
    return {
        "logps": [whole[index] for index in range(len(groups))],
        "num_truncated_prompts": encoder.num_truncated_prompts,
        "compute_s": time.monotonic() - started,
    }


def _batches(order: list[int], groups: list[TokenGroup]) -> list[list[int]]:
    batches: list[list[int]] = []
    tokens = _MAX_TOKENS
    for index in order:
        tokens += groups[index].num_tokens
        if tokens > _MAX_TOKENS:
            batches.append([])
            tokens = groups[index].num_tokens
        batches[-1].append(index)
    return batches
