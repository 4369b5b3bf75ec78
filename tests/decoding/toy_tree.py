"""A language model of a few tokens whose log-probabilities are drawn from a seed: what searches are tested on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sprec_ray.decoding.tree import NewTokens, Wanted
from sprec_ray.decoding.trie import Trie

EOS = 0


class ToyTree:
    """A ``TreeModel``; counts what is asked of it. ``scale`` 0 is a uniform model, a large one is sure."""

    def __init__(self, vocab_size: int, *, num_rows: int = 4, scale: float = 2.0, seed: int = 0) -> None:
        self.num_rows, self.vocab_size, self._scale, self._seed = num_rows, vocab_size, scale, seed
        self.num_passes = self.num_tokens = 0
        self._paths: list[dict[int, tuple[int, ...]]] = [{} for _ in range(num_rows)]

    def logps(self, path: Sequence[int]) -> Any:
        rng = np.random.default_rng([self._seed, *path])
        logits = self._scale * rng.standard_normal(self.vocab_size)
        return logits - np.log(np.exp(logits).sum())

    def logp(self, prompt: Sequence[int], response: Sequence[int]) -> float:
        path = [*prompt, *response]
        return float(sum(self.logps(path[:at])[path[at]] for at in range(len(prompt), len(path))))

    def open(self, rows: Any, prompts: Sequence[Sequence[int]], wanted: Wanted) -> Any:
        self.num_passes += 1
        paths = []
        for row, prompt in zip(rows, prompts, strict=True):
            self._paths[row] = {-1: tuple(prompt)}
            paths += [tuple(prompt[: at + 1]) for at in range(len(prompt))]
        return self._answer(paths, wanted)

    def grow(self, new: NewTokens, wanted: Wanted) -> Any:
        self.num_passes += 1
        self.num_tokens += len(new.token_T)
        bounds = [*new.generations]
        assert (bounds[0], bounds[-1]) == (0, len(new.token_T))
        assert bounds == sorted(set(bounds))
        slots, paths = [], []
        for row, parent, before, token in zip(new.row_T, new.parent_T, new.before_T, new.token_T, strict=True):
            tree = self._paths[row]
            slot = next(place for place in range(len(tree)) if place not in tree)
            tree[slot] = (*tree[parent if before < 0 else slots[before]], int(token))
            slots.append(slot)
            paths.append(tree[slot])
        return np.array(slots), self._answer(paths, wanted)

    def prune(self, row_E: Any, slot_E: Any) -> None:
        for row, tree in enumerate(self._paths):
            kept = [tree[slot] for slot in slot_E[(row_E == row) & (slot_E >= 0)]]
            for slot in [
                slot for slot in tree if slot >= 0 and not any(path[: len(tree[slot])] == tree[slot] for path in kept)
            ]:
                del tree[slot]

    def _answer(self, paths: list[tuple[int, ...]], wanted: Wanted) -> Any:
        return np.array([self.logps(paths[at])[token] for at, token in zip(wanted.at_W, wanted.token_W, strict=True)])


def responses_of(trie: Trie) -> dict[int, tuple[int, ...]]:
    """The tokens of every leaf."""
    return {leaf: trie.tokens_to(leaf) for leaf in np.flatnonzero(trie.num_children_n == 0).tolist()}
