"""Spares a model's last layer what nobody reads: of a prompt only the last token's output is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(slots=True)
class Read:
    """The places of the tokens [T] whose output is read in the next forward pass; None: all."""

    at: Tensor | None = None
    num_tokens: int = 0

    def expect(self, keep_A: Tensor, num_tokens: int) -> None:
        """Only these places of so many tokens are read."""
        self.at, self.num_tokens = (keep_A if len(keep_A) < num_tokens else None), num_tokens


@contextmanager
def skip_unread(layer: Any, read: Read) -> Iterator[None]:
    """While the block lasts the layer computes the output of its attention and its MLP only where they are read.

    Its keys and values are needed everywhere. A layer whose parts have other names than Llama's is left as it is.
    """
    attention = getattr(layer, "self_attn", None)
    parts = [part for part in (getattr(attention, "o_proj", None), getattr(layer, "mlp", None)) if part is not None]

    def select(_: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return None if read.at is None else (arguments[0].index_select(-2, read.at), *arguments[1:])

    def spread(module: Any, arguments: Any, output: Any) -> Any:
        if read.at is None:
            return output
        if isinstance(output, tuple):  # vLLM's layers give their bias too
            return (spread(module, arguments, output[0]), *output[1:])
        whole = torch.zeros(
            *output.shape[:-2], read.num_tokens, output.shape[-1], dtype=output.dtype, device=output.device
        )
        return whole.index_copy_(-2, read.at, output)

    handles = [
        handle
        for part in parts
        for handle in (part.register_forward_pre_hook(select), part.register_forward_hook(spread))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
