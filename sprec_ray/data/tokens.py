"""Prompts and responses as token ids: the one place where text is tokenized for training and decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sprec_ray.data.prompts import render_prompt, render_response


class TokenEncoder:
    """Turns histories and titles into token ids; prompt and response are tokenized apart and joined.

    Tokenizing apart makes training and decoding see the same ids at the seam, whatever a tokenizer would merge there.
    A prompt longer than ``max_prompt_tokens`` loses its oldest titles, and the middle of what is left when one title
    is still too long; how many prompts did is in ``num_truncated_prompts``. A response longer than
    ``max_response_tokens`` loses its end and the closing EOS; ``num_truncated_responses`` counts them.
    """

    def __init__(
        self, tokenizer: Any, *, template: str, noun: str, max_prompt_tokens: int, max_response_tokens: int
    ) -> None:
        self.tokenizer = tokenizer
        self.template, self.noun = template, noun
        self.max_prompt_tokens, self.max_response_tokens = max_prompt_tokens, max_response_tokens
        self.num_truncated_prompts = self.num_truncated_responses = 0

    def prompt(self, history: Sequence[str]) -> list[int]:
        """The token ids of a history's prompt, beginning-of-sequence token first where the tokenizer has one."""
        for first in range(max(1, len(history))):
            text = render_prompt(history[first:], template=self.template, noun=self.noun)
            ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            if self.tokenizer.bos_token_id is not None:
                ids = [self.tokenizer.bos_token_id, *ids]
            if len(ids) <= self.max_prompt_tokens:
                self.num_truncated_prompts += first > 0
                return ids
        self.num_truncated_prompts += 1
        return ids[: self.max_prompt_tokens // 2] + ids[-(self.max_prompt_tokens - self.max_prompt_tokens // 2) :]

    def response(self, title: str) -> list[int]:
        """The token ids of a title's response, end-of-sequence token last."""
        ids: list[int] = self.tokenizer(render_response(title), add_special_tokens=False)["input_ids"]
        ids = [*ids, self.tokenizer.eos_token_id]
        self.num_truncated_responses += len(ids) > self.max_response_tokens
        return ids[: self.max_response_tokens]
