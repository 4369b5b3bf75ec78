"""Search over the catalogue's trie, free of any engine: beams, the exact best items, and samples without replacement.

All prompts of a call are searched at once; one forward pass of the ``TreeModel`` serves them all, and a prompt that is
done makes room for the next.

Dimensions: E entries to expand, C children of entries, R rows, I items.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sprec_ray.decoding.arrays import (
    Bools,
    Floats,
    Longs,
    check_logps,
    count_in_row,
    ranges,
    segment_log_softmax,
    segment_log_sum,
)
from sprec_ray.decoding.catalog.entries import Entries, Walk, beyond, conditional_gumbel, gumbel, mixed_seed
from sprec_ray.decoding.catalog.request import CatalogSearch
from sprec_ray.decoding.catalog.trie import Trie
from sprec_ray.decoding.tree.interface import NewTokens, TreeModel, Wanted

_KEPT_TOKENS = 256
"""Tokens of a prompt up to which ``exact`` does not look for those that are not needed any more: they are few."""
_MAX_OPEN = 64
"""Nodes of a prompt that are kept sorted; the rest waits until it holds the best one."""
_REFILL_SHARE = 4
"""New prompts begin when one of so many rows is free: a few at a time would be computed slowly."""


@dataclass(frozen=True, slots=True)
class Found:
    """The answers to one prompt, best first; equal ones in the order of their leaves."""

    leaves: Longs
    """Leaves of the trie."""
    logps: Floats
    """Sums of token log-probabilities over the whole vocabulary, EOS included, whatever the scores are; nats."""
    scores: Floats
    """What the answers are ranked by."""
    gap: float
    """The most by which the score of an item that was not found can exceed the last answer's: 0 of an exact search
    within its budget, nan of ``beam``, which does not know."""
    num_tokens: int
    """Tokens computed after the prompt."""


def search_catalog(
    model: TreeModel,
    trie: Trie,
    prompts: Sequence[Sequence[int]],
    search: CatalogSearch,
    *,
    seeds: Sequence[int] | None = None,
    item_logps: npt.NDArray[np.float64] | None = None,
) -> list[Found]:
    """The answers to every prompt, in order; fewer than asked for where the catalogue holds fewer items.

    ``seeds`` number the prompts for ``sample``, so that a sample does not depend on what it is decoded beside.
    ``item_logps`` [prompts, I] are a collaborative model's log-probabilities. A step down the trie then scores
    ``g log p_LM(token | prefix) + (1 - g) log p_CF(token | prefix)``, p_CF by the mass of the items below (D3, arXiv
    2406.14900, section 4.3). Both terms only fall along a path, so ``exact`` stays exact.
    """
    if item_logps is not None and (search.kind == "sample" or item_logps.shape != (len(prompts), trie.num_items)):
        raise ValueError(
            f"item_logps of shape {item_logps.shape} need one row per prompt and one column per item, "
            f"({len(prompts)}, {trie.num_items}), and a search of the kind exact or beam"
        )
    if item_logps is not None and not (item_logps < np.inf).all():
        raise ValueError("item_logps hold NaN or infinity; a log-probability is a number or -inf")
    numbers = np.arange(len(prompts)) if seeds is None else np.asarray(seeds, dtype=np.int64)
    return _Run(model, trie, prompts, search, numbers, item_logps).answers()


class _Run:
    """One call's state: the prompt of each row, the nodes still to expand, and the leaves found so far."""

    def __init__(
        self,
        model: TreeModel,
        trie: Trie,
        prompts: Sequence[Sequence[int]],
        search: CatalogSearch,
        seeds: Longs,
        item_logps: npt.NDArray[np.float64] | None,
    ) -> None:
        self._model, self._trie, self._prompts, self._search, self._seeds = model, trie, prompts, search, seeds
        self._item_logps, self._sorted_logps = item_logps, dict[int, Floats]()
        self._found: dict[int, Found] = {}
        self._waiting = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))  # the longest goes first
        self._prompt_of = np.full(model.num_rows, -1, dtype=np.int64)
        self._num_tokens = np.zeros(model.num_rows, dtype=np.int64)
        self._lost = np.full(model.num_rows, -np.inf)
        """[R]: the best score that was given up."""
        self._open, self._leaves = Entries.none(), Entries.none()
        self._reserve: dict[int, list[Entries]] = {}
        self._reserve_best = np.full(model.num_rows, -np.inf)
        """[R]: the best score among the nodes that wait unsorted."""

    def answers(self) -> list[Found]:
        """Search until every prompt has its answers."""
        while self._waiting or (self._prompt_of >= 0).any():
            free = np.flatnonzero(self._prompt_of < 0)
            if self._waiting and len(free) * _REFILL_SHARE >= len(self._prompt_of):
                children = self._begin(free[: len(self._waiting)])
            else:
                children = self._expand(self._choose())
            children = children[children.score > -np.inf]
            if self._search.kind == "beam":
                self._advance_beams(children)
            else:
                self._sort_in(children)
            self._finish_rows()
            if self._search.kind == "beam" or self._num_tokens.max() > _KEPT_TOKENS:
                kept = [self._open, *itertools.chain.from_iterable(self._reserve.values())]
                self._model.prune(*(np.concatenate([getattr(e, name) for e in kept]) for name in ("row", "parent")))
        return [self._found[number] for number in range(len(self._prompts))]

    def _begin(self, rows: Longs) -> Entries:
        """Hand prompts to free rows; what follows the tokens that every title begins with."""
        numbers = [self._waiting.pop() for _ in rows]
        self._prompt_of[rows] = numbers
        self._num_tokens[rows], self._lost[rows], self._reserve_best[rows] = 0, -np.inf, -np.inf
        zeros = np.zeros(len(rows))
        score = gumbel(self._row_seeds(rows)) if self._search.kind == "sample" else zeros
        entries = Entries(rows, np.zeros(len(rows), np.int64), np.full(len(rows), -1), zeros, score, zeros)
        walk = Walk.down(entries, self._trie, follow=True)
        forced = self._trie.token_n[walk.node_T[walk.entry_T == 0][1:]].tolist()
        prompts = [[*self._prompts[number], *forced] for number in numbers]
        ends = np.cumsum([len(prompt) for prompt in prompts])
        at_T = (ends - len(forced) - 1)[walk.entry_T] + np.repeat(np.arange(len(forced) + 1), len(rows))
        if self._item_logps is not None:
            for row, number in zip(rows.tolist(), numbers, strict=True):
                self._sorted_logps[row] = self._item_logps[number][self._trie.items]
        wanted, child, child_of = self._wanted(walk, at_T)
        return self._children(walk, self._model.open(rows, prompts, wanted), child, child_of, entries.parent)

    def _choose(self) -> Entries:
        """Take out of the open nodes those to expand next."""
        if self._search.kind == "beam":
            chosen, self._open = self._open, Entries.none()
            return chosen
        # With enough nodes and better leaves before it, an entry may turn out not to be needed.
        both = Entries.join(self._open, self._leaves)
        order = np.lexsort((np.arange(len(both)), -both.score, both.row))
        rank = np.empty(len(both), dtype=np.int64)
        rank[order] = count_in_row(both.row[order])
        first = rank[: len(self._open)] < self._search.num_answers
        first &= self._open.score >= self._reserve_best[self._open.row]
        chosen, self._open = self._open[first], self._open[~first]
        return chosen

    def _expand(self, entries: Entries) -> Entries:
        """Compute the nodes' tokens, and for ``exact`` those forced after them at once; the children of the last."""
        walk = Walk.down(entries, self._trie, follow=self._search.kind != "beam")
        row_T = entries.row[walk.entry_T]
        self._num_tokens += np.bincount(row_T, minlength=len(self._num_tokens))
        parent_T = np.where(walk.before_T < 0, entries.parent[walk.entry_T], -1)
        token_T = self._trie.token_n[walk.node_T].astype(np.int64)
        wanted, child, child_of = self._wanted(walk, np.arange(len(row_T)))
        new = NewTokens(row_T, parent_T, walk.before_T, token_T, walk.generations)
        slot_T, logps = self._model.grow(new, wanted)
        return self._children(walk, logps, child, child_of, slot_T[walk.end_E])

    def _wanted(self, walk: Walk, at_T: Longs) -> tuple[Wanted, Longs, Longs]:
        """The forced tokens, then all that may follow the last; these children, and which entries they are of."""
        forced = np.flatnonzero(walk.before_T >= 0)
        end = walk.node_T[walk.end_E]
        first = self._trie.first_child_n[end].astype(np.int64)
        counts = self._trie.first_child_n[end + 1] - first
        child, child_of = ranges(first, counts), np.repeat(np.arange(len(end)), counts)
        at_W = np.concatenate([at_T[walk.before_T[forced]], at_T[walk.end_E][child_of]])
        token_W = self._trie.token_n[np.concatenate([walk.node_T[forced], child])].astype(np.int64)
        return Wanted(at_W, token_W), child, child_of

    def _children(self, walk: Walk, logps: Floats, child: Longs, child_of: Longs, parent_E: Longs) -> Entries:
        """The children as entries, with their scores."""
        check_logps(logps)
        entries, search = walk.entries, self._search
        forced, logp_C = np.split(logps, [len(logps) - len(child)])
        forced_C = np.bincount(walk.entry_T[walk.before_T >= 0], weights=forced, minlength=len(entries))[child_of]
        row_C, score_C, phi_C = entries.row[child_of], entries.score[child_of], entries.phi[child_of]
        if search.kind == "sample":
            phi_C = phi_C + segment_log_softmax(logp_C / search.temperature, child_of)
            noise_C = gumbel(mixed_seed(self._row_seeds(row_C), child))
            score_C = conditional_gumbel(phi_C + noise_C, score_C, child_of)
        else:
            step_C = segment_log_softmax(logp_C, child_of) if search.renormalize else logp_C + forced_C
            if self._item_logps is not None:
                collaborative_C = segment_log_softmax(self._log_mass(row_C, child), child_of)
                with np.errstate(invalid="ignore"):  # 0 times -inf: a model without a say
                    step_C = np.nan_to_num(search.lm_weight * step_C, nan=0.0, neginf=-np.inf) + np.nan_to_num(
                        (1 - search.lm_weight) * collaborative_C, nan=0.0, neginf=-np.inf
                    )
            score_C = score_C + step_C
        return Entries(row_C, child, parent_E[child_of], entries.logp[child_of] + forced_C + logp_C, score_C, phi_C)

    def _log_mass(self, row_C: Longs, node_C: Longs) -> Floats:
        """The collaborative model's log-probability of the items below each node, up to a constant of its row."""
        first = self._trie.first_item_n[node_C].astype(np.int64)
        counts = self._trie.last_item_n[node_C] - first
        mass = np.empty(len(row_C))
        for row in np.unique(row_C).tolist():
            here = row_C == row
            logps = self._sorted_logps[row][ranges(first[here], counts[here])]
            mass[here] = segment_log_sum(logps, np.repeat(np.arange(here.sum()), counts[here]))
        return mass

    def _row_seeds(self, row: Longs) -> npt.NDArray[np.uint64]:
        return mixed_seed(self._search.seed, self._seeds[self._prompt_of[row]])

    def _advance_beams(self, children: Entries) -> None:
        """The rule of ``free_beams.BeamSearch``: of the 2K best, leaves among the first K end and K others run on."""
        width = self._search.width
        best = children.best(2 * width)
        leaf = self._is_leaf(best)
        self._leaves = Entries.join(self._leaves, best[leaf & (count_in_row(best.row) < width)]).best(width)
        running = Entries.join(self._open, best[~leaf].best(width))  # the first are there while other rows begin
        # A beam that is worse than K leaves cannot become better, nor make room for one that is.
        worst = self._leaves.worst_of(width, len(self._prompt_of))
        self._open = running[running.score > worst[running.row]]

    def _sort_in(self, children: Entries) -> None:
        """Put children among the leaves and the open nodes, and drop what cannot count any more."""
        num_answers, num_rows = self._search.num_answers, len(self._prompt_of)
        leaf = self._is_leaf(children)
        if leaf.any():
            self._leaves = Entries.join(self._leaves, children[leaf]).best(num_answers)
        worst = self._leaves.worst_of(num_answers, num_rows)
        nodes = Entries.join(self._open, children[~leaf])
        nodes = nodes[nodes.score >= worst[nodes.row]]
        spent = self._num_tokens >= self._search.max_tokens
        if self._reserve:
            nodes = self._recall(nodes, worst, spent)
        later = beyond(nodes.row, nodes.score, _MAX_OPEN)
        for row, part in nodes[later].by_row():
            self._reserve.setdefault(row, []).append(part)
            self._reserve_best[row] = max(self._reserve_best[row], part.score.max())
        self._open = nodes[~later].best_first()
        over = spent[self._open.row] & (count_in_row(self._open.row) >= self._search.width)
        np.maximum.at(self._lost, self._open.row[over], self._open.score[over])
        self._open = self._open[~over]

    def _recall(self, nodes: Entries, worst: Floats, spent: Bools) -> Entries:
        """Bring back what waits in rows where it holds the best node; past the budget it is given up."""
        best = np.full(len(worst), -np.inf)
        np.maximum.at(best, nodes.row, nodes.score)
        parts = [nodes]
        for row in list(self._reserve):
            if self._reserve_best[row] < worst[row] or spent[row]:
                self._lost[row] = max(self._lost[row], self._reserve_best[row])
            elif best[row] < self._reserve_best[row]:
                parts += self._reserve[row]
            else:
                continue
            del self._reserve[row]
            self._reserve_best[row] = -np.inf
        return Entries.join(*parts)

    def _finish_rows(self) -> None:
        """Take the answers out of the rows that are done, and free these."""
        beams, num_rows = self._search.kind == "beam", len(self._prompt_of)
        width = self._search.width if beams else self._search.num_answers
        best = self._reserve_best.copy()
        np.maximum.at(best, self._open.row, self._open.score)
        worst = self._leaves.worst_of(width, num_rows)
        beaten = (worst > -np.inf) & ((best <= worst) if beams else (best < worst))
        done = (self._prompt_of >= 0) & (beaten | (best == -np.inf))
        for row in np.flatnonzero(done).tolist():
            leaves = self._leaves[self._leaves.row == row][: self._search.num_answers]
            full = len(leaves) == self._search.num_answers
            worst_answer = leaves.score[-1] if full else -np.inf
            gap = float(self._lost[row] - worst_answer) if self._lost[row] > worst_answer else 0.0
            number = int(self._prompt_of[row])
            self._found[number] = Found(
                leaves.node, leaves.logp, leaves.score, np.nan if beams else gap, int(self._num_tokens[row])
            )
            self._reserve.pop(row, None)
        self._prompt_of[done] = -1
        self._open, self._leaves = self._open[~done[self._open.row]], self._leaves[~done[self._leaves.row]]

    def _is_leaf(self, entries: Entries) -> Bools:
        first = self._trie.first_child_n
        leaf: Bools = first[entries.node] == first[entries.node + 1]
        return leaf
