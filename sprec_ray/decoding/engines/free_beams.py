"""Beam search over one prompt without an engine, and the hypotheses it ends in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sprec_ray.types import Hypothesis


@dataclass(frozen=True, slots=True)
class Beam:
    """Response tokens so far, and the sum of their log-probabilities in nats."""

    token_ids: tuple[int, ...]
    logp: float


class BeamSearch:
    """The beams of one prompt, advanced a token at a time by whoever owns the model.

    The rule is that of transformers' ``generate(num_beams=K, length_penalty=0.0, early_stopping="never")``: of the
    ``2K`` best continuations of all running beams, those that end in EOS and rank among the first ``K`` are finished,
    and the first ``K`` that do not end in EOS run on. A beam's score is the plain sum of its log-probabilities, which
    only falls as it grows, so the search is over, exactly, once ``K`` beams are finished and none that runs is better
    than the worst of them. At the length limit the ``K`` best continuations count as they are.

    vLLM's own ``LLM.beam_search`` cannot be set to this: it also keeps EOS continuations that rank below ``K``, and it
    decodes every prompt to the length limit.
    """

    def __init__(self, *, beam_width: int, max_new_tokens: int, eos_token_id: int) -> None:
        self.beam_width, self.max_new_tokens, self.eos_token_id = beam_width, max_new_tokens, eos_token_id
        self.running = [Beam((), 0.0)]
        self.finished: list[Beam] = []
        self._num_steps = 0

    def advance(self, continuations: Sequence[Mapping[int, float]]) -> None:
        """Add a token; ``continuations[i]`` maps (at least) the 2K best next tokens of ``running[i]`` to log-probs."""
        self._num_steps += 1
        candidates = [
            Beam((*beam.token_ids, token_id), beam.logp + logp)
            for beam, tokens in zip(self.running, continuations, strict=True)
            for token_id, logp in tokens.items()
            if logp != -math.inf
        ]
        candidates.sort(key=lambda beam: -beam.logp)
        best = candidates[: 2 * self.beam_width]
        if self._num_steps == self.max_new_tokens:
            ended, self.running = best[: self.beam_width], []
        else:
            ended = [beam for beam in best[: self.beam_width] if beam.token_ids[-1] == self.eos_token_id]
            self.running = [beam for beam in best if beam.token_ids[-1] != self.eos_token_id][: self.beam_width]
        self.finished = sorted(self.finished + ended, key=lambda beam: -beam.logp)[: self.beam_width]
        if len(self.finished) == self.beam_width and self.running and self.running[0].logp <= self.finished[-1].logp:
            self.running = []


def make_hypothesis(tokenizer: Any, token_ids: Sequence[int], logp: float) -> Hypothesis:
    """A decoded response; ``token_ids`` may end in EOS, which counts as a token but is not part of the text.

    Special tokens other than EOS stay visible in the text: a response that holds one is not a title.
    Raises ValueError when ``logp`` is not a number, which is what a diverged adapter gives.
    """
    if not math.isfinite(logp):
        raise ValueError(
            f"a response has log-probability {logp}: the weights have diverged; train with a lower learning rate, "
            "or delete the adapter and the stages after it"
        )
    finished = bool(token_ids) and token_ids[-1] == tokenizer.eos_token_id
    text_ids = list(token_ids[:-1] if finished else token_ids)
    text = tokenizer.decode(text_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return Hypothesis(text=text, logp=logp, num_tokens=len(token_ids), finished=finished)
