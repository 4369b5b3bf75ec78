"""What a decoder is: one protocol that every engine fulfils."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sprec_ray.decoding.engines.guarded_search import GuardedSearch
from sprec_ray.types import AdapterCheckpoint, Hypothesis


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
    catalog: GuardedSearch
    """Search over a catalogue of titles, and the ranking of all of it."""

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

    def score(self, prompt: Sequence[int], response: Sequence[int], *, tree: bool = False) -> float:
        """The summed log-probability of the response's tokens in nats, for comparison with the trainer's.

        ``tree``: computed the way ``catalog.search`` computes it, else the way of ``decode``.
        """

    def sleep(self) -> None:
        """Leave the GPU to a trainer: the weights wait in the CPU's memory. Nothing happens on a CPU, or when asleep.

        The adapter is kept. Any other call wakes the decoder first.
        """

    def wake(self) -> None:
        """Be ready to decode again, with the adapter of before. Nothing happens to a decoder that is awake."""

    def close(self) -> None:
        """Free the model; the decoder cannot be used after."""
