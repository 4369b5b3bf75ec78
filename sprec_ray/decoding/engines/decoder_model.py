"""The language model that a decoder hosts, and the largest work that it is made for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sprec_ray.decoding.catalog.trie import Trie


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderModel:
    """The language model a decoder hosts, and the largest work it will be given."""

    path: str
    """A folder, or the name of a model on the hub."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_model_len: int
    """Tokens of a prompt and its response together."""
    max_beam_width: int = 1
    lora_rank: int = 16
    search_cache_gib: float = 2.0
    """Memory for the keys and values of the prompts that are searched together."""
    trust_remote_code: bool = False
    quantization: Literal["none", "nf4"] = "none"
    tensor_parallel_size: int = 1
    """GPUs that hold one model together (vLLM only)."""

    def check_request(self, prompts: Sequence[Sequence[int]], *, beam_width: int, max_new_tokens: int) -> None:
        """Raise ValueError for work beyond what the decoder was made for."""
        if not 1 <= beam_width <= self.max_beam_width:
            raise ValueError(
                f"beam_width={beam_width} must be between 1 and the decoder's max_beam_width={self.max_beam_width}; "
                "start the decoder with a larger one"
            )
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")
        longest = max((len(prompt) for prompt in prompts), default=1)
        if longest + max_new_tokens > self.max_model_len:
            raise ValueError(
                f"a prompt of {longest} tokens and {max_new_tokens} new tokens exceed max_model_len="
                f"{self.max_model_len}; lower model.max_prompt_tokens or start the decoder with a larger max_model_len"
            )
        if any(not prompt for prompt in prompts):
            raise ValueError("a prompt has no tokens; every prompt needs at least one")

    @property
    def tolerance(self) -> float:
        """Nats per token by which two ways to compute one log-probability may differ."""
        return 1e-3 if self.dtype == "float32" else 5e-2

    def check_search(self, prompts: Sequence[Sequence[int]], trie: Trie) -> None:
        """Raise ValueError for prompts that do not fit the context with the catalogue's longest title."""
        self.check_request(prompts, beam_width=1, max_new_tokens=max(1, trie.depth))
