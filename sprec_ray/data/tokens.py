"""Prompts and responses as token ids: the one place where text is tokenized for training and decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sprec_ray.data.prompts import render_prompt, render_response

_LEAST_PROMPT = 16
"""Tokens below which a prompt says nothing."""


class TokenEncoder:
    """Turns histories and titles into token ids; prompt and response are tokenized apart and joined.

    Tokenizing apart makes training and decoding see the same ids at the seam, whatever a tokenizer would merge there.
    A prompt longer than ``max_prompt_tokens`` loses its oldest titles, and the middle of what is left when one title
    is still too long; how many prompts did is in ``num_truncated_prompts``. A response is never cut: what it has beyond
    ``max_response_tokens`` it takes from its prompt's room (``room``), and ``num_long_responses`` counts it.
    """

    def __init__(
        self, tokenizer: Any, *, template: str, noun: str, max_prompt_tokens: int, max_response_tokens: int
    ) -> None:
        self.tokenizer = tokenizer
        self.template, self.noun = template, noun
        self.max_prompt_tokens, self.max_response_tokens = max_prompt_tokens, max_response_tokens
        self.num_truncated_prompts = self.num_long_responses = 0

    def room(self, responses: Sequence[Sequence[int]]) -> int:
        """The tokens that a prompt may have before these responses. Raises ValueError where that is hardly any."""
        longest = max(responses, key=len)
        room = min(self.max_prompt_tokens, self.max_prompt_tokens + self.max_response_tokens - len(longest))
        if room < min(_LEAST_PROMPT, self.max_prompt_tokens):
            title = self.tokenizer.decode(longest, skip_special_tokens=True).strip()
            name = title if len(title) <= 80 else f"{title[:80]}..."
            raise ValueError(
                f"the title {name} has {len(longest)} tokens, which leaves {max(room, 0)} for its prompt; raise "
                "model.max_prompt_tokens or model.max_response_tokens"
            )
        return room

    def prompt(self, history: Sequence[str], *, candidates: Sequence[str] = (), room: int | None = None) -> list[int]:
        """The token ids of a history's prompt, beginning-of-sequence token first where the tokenizer has one.

        At most ``room`` tokens; None: ``max_prompt_tokens``. Candidates are never cut: before them all of the history
        gives way, and what is too long even then raises ValueError.
        """

        def render(kept: Sequence[str]) -> str:
            return render_prompt(kept, template=self.template, noun=self.noun, candidates=candidates)

        ids = self.fitted(history, render, room=room, least=0 if candidates else 1)
        if candidates and len(ids) > (self.max_prompt_tokens if room is None else room):
            raise ValueError(
                f"a prompt of {len(candidates)} candidates has {len(ids)} tokens without any history, and there is "
                f"room for {room or self.max_prompt_tokens}; raise model.max_prompt_tokens or lower data.num_candidates"
            )
        return ids

    def fitted(
        self,
        history: Sequence[str],
        render: Callable[[Sequence[str]], str],
        *,
        room: int | None = None,
        least: Literal[0, 1] = 1,
    ) -> list[int]:
        """The token ids of what ``render`` makes of as much of the history's end as there is room for.

        What is too long with the ``least`` number of titles is cut in the middle, or with 0 returned as it is.
        """
        room = self.max_prompt_tokens if room is None else room
        for first in range(max(1, len(history) + 1 - least)):
            ids: list[int] = self.tokenizer(render(history[first:]), add_special_tokens=False)["input_ids"]
            if self.tokenizer.bos_token_id is not None:
                ids = [self.tokenizer.bos_token_id, *ids]
            if len(ids) <= room:
                self.num_truncated_prompts += first > 0
                return ids
        self.num_truncated_prompts += 1
        if not least:
            return ids
        return ids[: room // 2] + ids[-(room - room // 2) :]

    def responses(self, titles: Sequence[str]) -> list[list[int]]:
        """The token ids of many titles' responses at once, as ``response`` gives them."""
        texts = [render_response(title) for title in titles]
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return [[*row, self.tokenizer.eos_token_id] for row in ids]

    def response(self, title: str) -> list[int]:
        """The token ids of a title's response, end-of-sequence token last."""
        return self.ended(render_response(title))

    def ended(self, response: str) -> list[int]:
        """The token ids of a rendered response, end-of-sequence token last."""
        ids: list[int] = self.tokenizer(response, add_special_tokens=False)["input_ids"]
        ids = [*ids, self.tokenizer.eos_token_id]
        self.num_long_responses += len(ids) > self.max_response_tokens
        return ids


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSettings:
    """How histories and titles become tokens; the arguments of TokenEncoder."""

    template: str
    noun: str
    max_prompt_tokens: int
    max_response_tokens: int

    def encoder(self, tokenizer: Any) -> TokenEncoder:
        """The encoder of a tokenizer."""
        return TokenEncoder(
            tokenizer,
            template=self.template,
            noun=self.noun,
            max_prompt_tokens=self.max_prompt_tokens,
            max_response_tokens=self.max_response_tokens,
        )
