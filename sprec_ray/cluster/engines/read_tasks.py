"""What workers do that changes no policy: embed texts, and score given answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from sprec_ray.cluster.engines.parcel import local_paths
from sprec_ray.cluster.engines.row_tokens import row_tokens
from sprec_ray.cluster.engines.tasks import EmbedTask, ReadPolicy, ScoreTask
from sprec_ray.training.packing import TokenGroup

_MAX_TOKENS = 8192
"""Tokens of prompts and responses in one forward pass."""


def embed(task: EmbedTask, worker: Any) -> dict[str, Any]:
    """Every worker embeds its share of the texts; all have all vectors afterwards, in order."""
    from sprec_ray.evaluation.embedding import embed_texts

    started = time.monotonic()
    model, tokenizer = _load(task.policy, worker, local_paths(task.parcels))
    mine = task.texts[worker.rank :: worker.world_size]
    vectors = embed_texts(model, tokenizer, mine, batch_size=64) if mine else None
    shards = _from_all(vectors, worker)
    width = next(shard.shape[1] for shard in shards if shard is not None)
    whole = np.zeros((len(task.texts), width), dtype=np.float32)
    for rank, shard in enumerate(shards):
        if shard is not None:
            whole[rank :: worker.world_size] = shard
    return {"vectors": whole, "compute_s": time.monotonic() - started}


def score(task: ScoreTask, worker: Any) -> dict[str, Any]:
    """Every worker scores its share of the groups, alike in length; all have all of them afterwards, in order."""
    from sprec_ray.training.scoring import make_scorer

    started = time.monotonic()
    model, tokenizer = _load(task.policy, worker, local_paths(task.parcels))
    encoder = task.text.encoder(tokenizer)
    groups = [row_tokens(row, encoder) for row in task.groups]
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
    whole = {index: logps for shard in _from_all(scored, worker) for index, logps in shard.items()}
    return {
        "logps": [whole[index] for index in range(len(groups))],
        "num_truncated_prompts": encoder.num_truncated_prompts,
        "compute_s": time.monotonic() - started,
    }


def _load(policy: ReadPolicy, worker: Any, local: Callable[[Any], Any]) -> tuple[Any, Any]:
    """The policy's model on the worker's device, and its tokenizer."""
    from transformers import AutoTokenizer

    from sprec_ray.models.adapters import load_policy

    model_path = local(policy.model_path)
    model = load_policy(
        model_path,
        local(policy.adapter),
        policy.lora,
        dtype=policy.dtype,
        quantization=policy.quantization,
        device=worker.device,
        trust_remote_code=policy.trust_remote_code,
    )
    return model, AutoTokenizer.from_pretrained(model_path, trust_remote_code=policy.trust_remote_code)


def _from_all(mine: Any, worker: Any) -> list[Any]:
    """What every worker has, by rank."""
    shards: list[Any] = [mine]
    if worker.world_size > 1:
        shards = [None] * worker.world_size
        dist.all_gather_object(shards, mine)
    return shards


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
