"""The catalogue as decoders search it: a trie of its titles' tokens, built once per tokenizer, and what leaves mean."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sprec_ray.data.prompts import render_response
from sprec_ray.data.tokens import TokenEncoder
from sprec_ray.decoding.arrays import Floats
from sprec_ray.decoding.catalog.search import Found
from sprec_ray.decoding.catalog.trie import Trie, build_trie
from sprec_ray.types import Hypothesis

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CatalogIndex:
    """The trie, and the titles of its items."""

    trie: Trie
    titles: tuple[str, ...]

    def places_in(self, catalog: Sequence[str]) -> list[int]:
        """The places of the titles in the whole catalogue, of which too long ones are not in the index."""
        place_of = {title: place for place, title in enumerate(catalog)}
        return [place_of[title] for title in self.titles]

    def room(self, max_prompt_tokens: int, max_model_len: int) -> int:
        """Tokens of a prompt. As in training, a title longer than ``max_response_tokens`` takes its room from it."""
        return min(max_prompt_tokens, max_model_len - self.trie.depth)

    def hypotheses(self, found: Found) -> tuple[Hypothesis, ...]:
        """The answers as responses, written as the catalogue writes them; nothing is decoded to text."""
        return tuple(
            self._hypothesis(leaf, logp) for leaf, logp in zip(found.leaves.tolist(), found.logps.tolist(), strict=True)
        )

    def ranked(
        self, logps_PI: Floats, scores_PI: Floats, targets: Sequence[str], num_answers: int
    ) -> list[dict[str, Any]]:
        """Rollouts' fields from the scores of all items; items of equal scores are in the catalogue's order."""
        leaf_of, place_of = self.trie.leaf_of_items(), {title: place for place, title in enumerate(self.titles)}
        rollouts = []
        for logps, scores, target in zip(logps_PI, scores_PI, targets, strict=True):
            best: dict[int, float] = {}
            for item in np.argsort(-scores, kind="stable").tolist():
                best.setdefault(int(leaf_of[item]), float(logps[item]))
                if len(best) == num_answers:
                    break
            hypotheses = tuple(self._hypothesis(leaf, logp) for leaf, logp in best.items())
            rollout: dict[str, Any] = {"hypotheses": hypotheses, "gap": 0.0}
            if target in place_of:
                place = place_of[target]
                above = int((scores > scores[place]).sum())
                rollout |= {"target_rank": above, "target_logp": float(logps[place])}
            rollouts.append(rollout)
        return rollouts

    def _hypothesis(self, leaf: int, logp: float) -> Hypothesis:
        title, *also = (self.titles[item] for item in self.trie.items_below(leaf))
        num_tokens = len(self.trie.tokens_to(leaf))
        text = render_response(title)
        return Hypothesis(text=text, logp=logp, num_tokens=num_tokens, finished=True, same_tokens=tuple(also))


def catalog_index(encoder: TokenEncoder, titles: Sequence[str], *, folder: Path, max_tokens: int) -> CatalogIndex:
    """The index of the titles, from the folder where an earlier run kept it, else built and kept there.

    Titles of more than ``max_tokens`` tokens, which leave no room for a prompt, cannot be recommended: a warning says
    how many. So it does for titles that the tokenizer makes the same tokens of: one answer then names all of them.
    """
    key = _key(encoder.tokenizer, titles, max_tokens)
    where = folder / key[:16]
    kept = where / "titles.json"
    trie = Trie.read(where, key=key)
    if trie is None:
        responses = encoder.responses(titles)
        short = [number for number, response in enumerate(responses) if len(response) <= max_tokens]
        if titles and not short:
            raise ValueError(
                f"all {len(titles)} titles of the catalogue have more than {max_tokens} tokens, which leaves no room "
                "for a prompt; raise model.max_prompt_tokens"
            )
        _check(encoder.tokenizer, titles, responses)
        trie = build_trie([responses[number] for number in short], eos_token_id=encoder.tokenizer.eos_token_id)
        where.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(short))
        trie.write(where, key=key)
    index = CatalogIndex(trie, tuple(titles[number] for number in json.loads(kept.read_text())))
    _warn(index, titles, max_tokens)
    return index


def _check(tokenizer: Any, titles: Sequence[str], responses: Sequence[Sequence[int]]) -> None:
    eos = tokenizer.eos_token_id
    wrong = [title for title, response in zip(titles, responses, strict=True) if eos in response[:-1]]
    if wrong:
        raise ValueError(
            f"{len(wrong)} titles of the catalogue ({wrong[0]!r:.60}) hold the end-of-sequence token "
            f"{tokenizer.eos_token}; rename them or change the tokenizer"
        )


def _warn(index: CatalogIndex, titles: Sequence[str], max_tokens: int) -> None:
    if len(index.titles) < len(titles):
        missing = sorted(set(titles) - set(index.titles))
        logger.warning(
            "%d titles have more than %d tokens and are never recommended (%.60s); raise model.max_prompt_tokens",
            len(missing),
            max_tokens,
            missing[0],
        )
    num_leaves = int((index.trie.num_children_n == 0).sum())
    if num_leaves < len(index.titles):
        logger.warning(
            "%d titles have the tokens of another one: the tokenizer cannot tell them apart; an answer names them all",
            len(index.titles) - num_leaves,
        )


def _key(tokenizer: Any, titles: Sequence[str], max_tokens: int) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    made_of = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    special = [tokenizer.eos_token_id, max_tokens, render_response("")]
    return hashlib.sha256(json.dumps([made_of, special, list(titles)]).encode()).hexdigest()
