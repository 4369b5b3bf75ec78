"""Reference log-probabilities on disk, under names made of everything they depend on."""

from __future__ import annotations

import hashlib
import os
import uuid
from array import array
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sprec_ray.models.adapters import WEIGHTS
from sprec_ray.training.packing import TokenGroup

_NAME = "reference_logps_BK"


def cache_key(config: Any, adapter: str | None, groups: Sequence[TokenGroup], how: Sequence[str]) -> str:
    """A name for the log-probabilities of these groups under this policy.

    ``config`` is the base model's configuration: of a folder the content of its weights counts, of a model on the hub
    its commit. The groups' tokens hold the data, the template and the tokenizer. ``how`` is what else changes numbers,
    be it in their last digits: dtype, device, batch sizes.
    """
    digest = hashlib.sha256()
    folder = Path(config.name_or_path)
    weights = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    base = [_file_digest(file, os.stat(file).st_mtime_ns) for file in weights]
    base = base or [config.name_or_path, str(getattr(config, "_commit_hash", None))]
    policy = [] if adapter is None else [_file_digest(file, os.stat(file).st_mtime_ns) for file in _files(adapter)]
    for part in ("1", *how, "base", config.to_json_string(use_diff=True), *base, "adapter", *policy):
        digest.update(part.encode() + b"\0")
    for group in groups:
        for tokens in (*group.prompts, *group.responses):
            digest.update(array("q", [len(tokens), *tokens]).tobytes())
        digest.update(array("q", [-1]).tobytes())
    return digest.hexdigest()[:32]


def _files(adapter: str) -> list[Path]:
    return [Path(adapter) / WEIGHTS, Path(adapter) / "adapter_config.json"]


@lru_cache(maxsize=64)
def _file_digest(file: Path, _modified_ns: int) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_references(file: Path, groups: Sequence[TokenGroup]) -> list[Tensor]:
    """The log-probabilities of each group's responses, [K] each.

    Raises ValueError for a file that is damaged, of other groups, or holds a NaN.
    """
    try:
        logps_BK = load_file(file)[_NAME]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{file} is damaged ({error}); delete it and run the same command again") from None
    if logps_BK.shape != (len(groups), max(len(group.responses) for group in groups)):
        raise ValueError(f"{file} holds {tuple(logps_BK.shape)} log-probabilities of other groups; delete it")
    references = [logps_K[: len(group.responses)] for logps_K, group in zip(logps_BK, groups, strict=True)]
    for number, logps_K in enumerate(references):
        if not bool(logps_K.isfinite().all()):
            raise ValueError(
                f"{file} holds a reference log-probability that is not a number (group {number}); delete it and run "
                "the same command again"
            )
    return references


def write_references(file: Path, references: Sequence[Tensor]) -> None:
    """Write the file whole or not at all; groups with fewer responses are padded with NaN."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    logps_BK = torch.nn.utils.rnn.pad_sequence(list(references), batch_first=True, padding_value=torch.nan)
    save_file({_NAME: logps_BK.contiguous()}, temporary)
    temporary.replace(file)
