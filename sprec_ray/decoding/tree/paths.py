"""A tree of tokens for models that cannot share a prompt: every path is scored by itself, from the first token on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sprec_ray.decoding.arrays import Floats, Longs
from sprec_ray.decoding.tree.interface import NewTokens, Wanted

ScorePaths = Callable[[Sequence[Sequence[int]], Sequence[Longs]], Sequence[Floats]]
"""For each path of token ids, the log-probabilities of some next tokens."""


class TreePaths:
    """A ``TreeModel`` that asks for whole paths: slow where an engine does not remember what they begin with."""

    def __init__(self, score: ScorePaths, *, num_rows: int) -> None:
        self.num_rows = num_rows
        self._score = score
        self._prompts: list[Sequence[int]] = [()] * num_rows
        self._trees: list[dict[int, tuple[int, ...]]] = [{} for _ in range(num_rows)]

    def open(self, rows: Longs, prompts: Sequence[Sequence[int]], wanted: Wanted) -> Floats:
        """See ``TreeModel.open``."""
        for row, prompt in zip(rows.tolist(), prompts, strict=True):
            self._prompts[row], self._trees[row] = prompt, {-1: ()}
        ends = np.cumsum([len(prompt) for prompt in prompts])

        def path(at: int) -> Sequence[int]:
            number = int(np.searchsorted(ends, at, side="right"))
            return prompts[number][: at + 1 - int(ends[number]) + len(prompts[number])]

        return self._logps(path, wanted)

    def grow(self, new: NewTokens, wanted: Wanted) -> tuple[Longs, Floats]:
        """See ``TreeModel.grow``."""
        slots: list[int] = []
        columns = (new.row_T, new.parent_T, new.before_T, new.token_T)
        for row, parent, before, token in zip(*(column.tolist() for column in columns), strict=True):
            tree = self._trees[row]
            slots.append(max(tree) + 1)
            tree[slots[-1]] = (*tree[parent if before < 0 else slots[before]], token)
        rows = new.row_T.tolist()
        return np.array(slots), self._logps(
            lambda at: [*self._prompts[rows[at]], *self._trees[rows[at]][slots[at]]], wanted
        )

    def prune(self, row_E: Longs, slot_E: Longs) -> None:
        """See ``TreeModel.prune``; a path is a few numbers, so all are kept."""

    def _logps(self, path: Callable[[int], Sequence[int]], wanted: Wanted) -> Floats:
        order = np.argsort(wanted.at_W, kind="stable")
        at, starts = np.unique(wanted.at_W[order], return_index=True)
        next_tokens = np.split(wanted.token_W[order], starts[1:])
        logps = np.empty(len(order))
        logps[order] = np.concatenate(self._score([path(number) for number in at.tolist()], next_tokens))
        return logps
