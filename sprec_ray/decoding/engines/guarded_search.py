"""Catalogue search on an engine: over its tree where that agrees with the engine's own numbers, else path by path."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from sprec_ray.decoding.arrays import Floats, check_logps
from sprec_ray.decoding.catalog.ranking import rank_catalog, score_responses
from sprec_ray.decoding.catalog.request import CatalogSearch
from sprec_ray.decoding.catalog.search import Found, search_catalog
from sprec_ray.decoding.catalog.trie import Trie
from sprec_ray.decoding.engines.decoder_model import DecoderModel
from sprec_ray.decoding.tree.interface import TreeModel
from sprec_ray.decoding.tree.paths import ScorePaths, TreePaths

logger = logging.getLogger(__name__)


_MAX_ROWS = 128
_ROOM_FOR_TREES = 256
"""Tokens that the tree of a prompt has, about, besides the prompt."""


def max_rows(config: Any, model: DecoderModel) -> int:
    """How many prompts of a transformers configuration fit into ``model.search_cache_gib``, each with its tree."""
    text = config.get_text_config()
    if not hasattr(text, "num_attention_heads"):
        return _MAX_ROWS  # a model without attention keeps no keys: it is searched path by path
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    token_bytes = 2 * text.num_hidden_layers * heads * size * (4 if model.dtype == "float32" else 2)
    row_bytes = token_bytes * (model.max_model_len + _ROOM_FOR_TREES)
    return max(1, min(_MAX_ROWS, int(model.search_cache_gib * 2**30 / row_bytes * model.tensor_parallel_size)))


@dataclass(slots=True, kw_only=True)
class GuardedSearch:
    """What an engine gives, and the search on it: the ``catalog`` of every ``Decoder``."""

    limits: DecoderModel
    """The largest work that the engine was made for."""
    open_tree: Callable[[int], AbstractContextManager[TreeModel]]
    """A tree of so many rows; while it is open the engine need not have a way of its own."""
    score: Callable[[Sequence[int], Sequence[int]], float]
    """The log-probability of a response to a prompt, the engine's own way."""
    score_paths: ScorePaths
    why_not: Callable[[], str | None]
    """A reason known beforehand not to use the tree."""
    max_rows: int
    """Prompts searched together, at most."""
    is_checked: bool = False
    why_not_tree: str | None = None
    """Why paths are scored one by one; None: they are not."""

    def search(
        self,
        trie: Trie,
        prompts: Sequence[Sequence[int]],
        search: CatalogSearch,
        *,
        seeds: Sequence[int] | None = None,
        item_logps: Floats | None = None,
    ) -> list[Found]:
        """The catalogue's items that ``search`` asks for, for each prompt; see ``catalog.search_catalog``.

        All engines give the same items in the same order. ValueError for a prompt that does not fit ``max_model_len``
        with the catalogue's longest title.
        """
        self.limits.check_search(prompts, trie)
        if not prompts:
            return []
        with self._tree(trie, prompts) as tree:
            return search_catalog(tree, trie, prompts, search, seeds=seeds, item_logps=item_logps)

    def rank(self, trie: Trie, prompts: Sequence[Sequence[int]]) -> Floats:
        """[prompts, items]: the log-probability of every item of the catalogue; see ``catalog.rank_catalog``.

        ValueError as of ``search``.
        """
        self.limits.check_search(prompts, trie)
        if not prompts:
            return np.zeros((0, trie.num_items))
        with self._tree(trie, prompts) as tree:
            return rank_catalog(tree, trie, prompts)

    def score_in_tree(self, prompt: Sequence[int], response: Sequence[int]) -> float:
        """The log-probability of a response to a prompt, the way of ``search``."""
        self._check(prompt, response)
        if self.why_not_tree is not None:
            return self.score(prompt, response)
        with self.open_tree(1) as tree:
            logps = score_responses(tree, prompt, [response])
            check_logps(logps)
            return float(logps[0])

    @contextmanager
    def _tree(self, trie: Trie, prompts: Sequence[Sequence[int]]) -> Iterator[TreeModel]:
        self._check(max(prompts, key=len), trie.tokens_to(trie.num_nodes - 1))
        num_rows = min(len(prompts), self.max_rows)
        if self.why_not_tree is not None:
            yield TreePaths(self.score_paths, num_rows=num_rows)
            return
        with self.open_tree(num_rows) as tree:
            yield tree

    def _check(self, prompt: Sequence[int], response: Sequence[int]) -> None:
        """Compare once a tree of two branches, the response and the same backwards, with the engine's own numbers."""
        if self.is_checked:
            return
        self.why_not_tree = self.why_not() or self._disagreement(prompt, [tuple(response), tuple(response)[::-1]])
        self.is_checked = True
        if self.why_not_tree is not None:
            logger.warning("searching path by path, which is slower: %s", self.why_not_tree)

    def _disagreement(self, prompt: Sequence[int], responses: Sequence[Sequence[int]]) -> str | None:
        expectations = [self.score(prompt, response) for response in responses]
        check_logps(np.array(expectations))
        try:
            with self.open_tree(1) as tree:
                logps = score_responses(tree, prompt, responses)
        except TypeError as error:  # how a model refuses what it is not made for
            return f"the model takes no other attention ({error})"
        for response, logp, expected in zip(responses, logps, expectations, strict=True):
            if not abs(logp - expected) <= self.limits.tolerance * len(response):
                return f"a response has {logp:.4f} nats with the prompt shared and {expected:.4f} alone"
        return None
