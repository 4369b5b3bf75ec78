"""What a decoder is, and how the configured one is made."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from sprec_ray.decoding.request import CatalogSearch
from sprec_ray.decoding.search import Found
from sprec_ray.decoding.trie import Trie
from sprec_ray.types import AdapterCheckpoint, Hypothesis

if TYPE_CHECKING:  # so that a decoder runs without pydantic, where it is profiled alone
    from sprec_ray.config import DecodingConfig

logger = logging.getLogger(__name__)


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


class Decoder(Protocol):
    """An engine that holds one language model and decodes with one adapter at a time.

    All engines return the same hypotheses in the same order: beams are ranked by the plain sum of their token
    log-probabilities, EOS included (length_penalty 0, the project's meaning of "most probable"; both transformers
    and vLLM default to dividing by the length, and count it differently). ``free_beams.BeamSearch`` states the rule.
    Decoding is greedy or a beam, never sampled: what a model's generation_config asks for is ignored, and the only
    stop token is the tokenizer's EOS, which is what training appends to a response.
    """

    engine: str
    """``vllm 0.32.0`` or ``transformers 5.19.0``: what the report names."""

    def load_adapter(self, adapter: AdapterCheckpoint | None) -> None:
        """Decode with this adapter from now on, or with the base model alone.

        Raises ValueError, and goes back to the base model, when a part of the adapter cannot be applied.
        """

    def decode(
        self, prompts: Sequence[Sequence[int]], *, beam_width: int, max_new_tokens: int
    ) -> list[tuple[Hypothesis, ...]]:
        """The ``beam_width`` most probable responses found for each prompt of token ids, best first.

        ``beam_width=1`` is greedy. ValueError for a prompt that does not fit ``max_model_len`` with its response.
        """

    def search(
        self,
        trie: Trie,
        prompts: Sequence[Sequence[int]],
        search: CatalogSearch,
        *,
        seeds: Sequence[int] | None = None,
        item_logps: npt.NDArray[np.float64] | None = None,
    ) -> list[Found]:
        """The catalogue's items that ``search`` asks for, for each prompt; see ``search.search_catalog``.

        All engines give the same items in the same order. ValueError for a prompt that does not fit ``max_model_len``
        with the catalogue's longest title.
        """

    def rank(self, trie: Trie, prompts: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
        """[prompts, items]: the log-probability of every item of the catalogue; see ``ranking.rank_catalog``."""

    def score(self, prompt: Sequence[int], response: Sequence[int], *, tree: bool = False) -> float:
        """The summed log-probability of the response's tokens in nats, for comparison with the trainer's.

        ``tree``: computed the way ``search`` computes it, else the way of ``decode``.
        """

    def sleep(self) -> None:
        """Leave the GPU to a trainer: the weights wait in the CPU's memory. Nothing happens on a CPU, or when asleep.

        The adapter is kept. Any other call wakes the decoder first.
        """

    def wake(self) -> None:
        """Be ready to decode again, with the adapter of before. Nothing happens to a decoder that is awake."""

    def close(self) -> None:
        """Free the model; the decoder cannot be used after."""


def resolve_engine(config: DecodingConfig) -> Literal["vllm", "transformers"]:
    """The engine that ``decoding.engine`` stands for on this machine."""
    if config.engine != "auto":
        return config.engine
    return "vllm" if importlib.util.find_spec("vllm") is not None else "transformers"


def make_decoder(config: DecodingConfig, model: DecoderModel, *, use_gpu: bool, seed: int) -> Decoder:
    """The decoder of ``config.engine``; ``auto`` takes vLLM where it is installed.

    ``config`` gives the engine and its memory; ``seed`` only seeds vLLM's generator, decoding draws nothing.
    Raises ValueError when vLLM is asked for by name and not installed.
    """
    match resolve_engine(config):
        case "vllm":
            if importlib.util.find_spec("vllm") is None:
                raise ValueError(
                    "decoding.engine=vllm but vllm is not installed; install it, or set decoding.engine=transformers"
                )
            from sprec_ray.decoding.vllm_decoder import VllmDecoder

            decoder: Decoder = VllmDecoder(config, model, use_gpu=use_gpu, merge_adapters=not use_gpu, seed=seed)
        case "transformers":
            from sprec_ray.decoding.hf_decoder import TransformersDecoder

            decoder = TransformersDecoder(model, use_gpu=use_gpu)
    logger.info("decoding.engine=%s: decoding with %s", config.engine, decoder.engine)
    return decoder
