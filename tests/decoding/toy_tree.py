"""A language model of a few tokens whose log-probabilities are drawn from a seed: what searches are tested on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from sprec_ray.decoding.catalog.trie import Trie, build_trie
from sprec_ray.decoding.tree.interface import NewTokens, Wanted

EOS = 0
VOCAB_SIZE = 5


class ToyTree:
    """A ``TreeModel``; counts what is asked of it. ``scale`` 0 is a uniform model, a large one is sure.

    ``grid`` rounds log-probabilities to its multiples: sums of quarters are exact, so that equal scores are many and
    equal to the last bit. Without ``reuse`` every token has a place of its own for ever, and a pruned one is gone.
    """

    def __init__(
        self,
        vocab_size: int = VOCAB_SIZE,
        *,
        num_rows: int = 4,
        scale: float = 2.0,
        seed: int = 0,
        grid: float = 0.0,
        reuse: bool = True,
    ) -> None:
        self.num_rows, self.vocab_size, self._scale, self._seed = num_rows, vocab_size, scale, seed
        self._grid, self._reuse = grid, reuse
        self.num_passes = self.num_tokens = self.num_places = 0
        self._logps: dict[tuple[int, ...], Any] = {}
        self._prompts: list[tuple[int, ...]] = [()] * num_rows
        self._paths: list[dict[int, tuple[int, ...]]] = [{} for _ in range(num_rows)]

    def logps(self, path: Sequence[int]) -> Any:
        """Log-probabilities of all tokens after a path."""
        if tuple(path) not in self._logps:
            logits = self._scale * np.random.default_rng([self._seed, *path]).standard_normal(self.vocab_size)
            logps = logits - np.log(np.exp(logits).sum())
            self._logps[tuple(path)] = np.round(logps / self._grid) * self._grid if self._grid else logps
        return self._logps[tuple(path)]

    def logp(self, prompt: Sequence[int], response: Sequence[int]) -> float:
        """The sum of a response's log-probabilities."""
        path = [*prompt, *response]
        return float(sum(self.logps(path[:at])[path[at]] for at in range(len(prompt), len(path))))

    def open(self, rows: Any, prompts: Sequence[Sequence[int]], wanted: Wanted) -> Any:
        self.num_passes += 1
        paths = []
        for row, prompt in zip(rows, prompts, strict=True):
            self._prompts[row], self._paths[row] = tuple(prompt), {}
            paths += [tuple(prompt[: at + 1]) for at in range(len(prompt))]
        return self._answer(paths, wanted)

    def grow(self, new: NewTokens, wanted: Wanted) -> Any:
        self.num_passes += 1
        self.num_tokens += len(new.token_T)
        assert (new.generations[0], new.generations[-1]) == (0, len(new.token_T))
        assert list(new.generations) == sorted(set(new.generations))
        generation_T = np.searchsorted(new.generations, np.arange(len(new.token_T)), side="right")
        has_new_parent = new.before_T >= 0
        assert ((generation_T > 1) == has_new_parent).all()
        assert (generation_T[new.before_T[has_new_parent]] < generation_T[has_new_parent]).all()
        slots: list[int] = []
        for row, parent, before, token in zip(new.row_T, new.parent_T, new.before_T, new.token_T, strict=True):
            tree, at = self._paths[row], int(parent) if before < 0 else slots[before]
            slot = (
                next(place for place in range(len(tree) + 1) if place not in tree) if self._reuse else self.num_tokens
            )
            while slot in tree:
                slot += 1
            tree[slot] = (*(tree[at] if at >= 0 else self._prompts[row]), int(token))
            slots.append(slot)
        self.num_places = max(self.num_places, *(slot + 1 for slot in slots))
        paths = [self._paths[row][slot] for row, slot in zip(new.row_T, slots, strict=True)]
        return np.array(slots), self._answer(paths, wanted)

    def prune(self, row_E: Any, slot_E: Any) -> None:
        for row, tree in enumerate(self._paths):
            kept = [tree[slot] for slot in set(slot_E[(row_E == row) & (slot_E >= 0)].tolist())]
            needed = {path[:end] for path in kept for end in range(len(path) + 1)}
            self._paths[row] = {slot: path for slot, path in tree.items() if path in needed}

    def _answer(self, paths: list[tuple[int, ...]], wanted: Wanted) -> Any:
        return np.array([self.logps(paths[at])[token] for at, token in zip(wanted.at_W, wanted.token_W, strict=True)])


def responses_of(trie: Trie) -> dict[int, tuple[int, ...]]:
    """The tokens of every leaf."""
    return {leaf: trie.tokens_to(leaf) for leaf in np.flatnonzero(trie.num_children_n == 0).tolist()}


def ranked(scores: dict[int, float]) -> list[int]:
    """Leaves by falling score; of equal scores the lower leaf comes first."""
    return sorted(scores, key=lambda leaf: (-scores[leaf], leaf))


def make_trie(titles: Sequence[Sequence[int]]) -> Trie:
    """The trie of titles without their EOS."""
    return build_trie([(*title, EOS) for title in titles], eos_token_id=EOS)


titles = st.lists(st.integers(1, VOCAB_SIZE - 1), max_size=6)
catalogs = st.lists(titles, min_size=1, max_size=30)
prompts = st.lists(st.lists(st.integers(1, VOCAB_SIZE - 1), min_size=1, max_size=4), max_size=7)
