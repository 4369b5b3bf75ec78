"""Every metric row by row in plain Python, over titles, dictionaries and sets: the other side of benchmarks/metrics.py.

In the manner of scripts that measure recommenders (SPRec's published evaluation among them): the rank of the target is
found by sorting the whole catalogue for every row, and everything else is counted in dictionaries, one title after the
other. Nothing here shares code with the package.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import combinations


def rank_by_sorting(scores: Sequence[Sequence[float]], k: int) -> list[list[int]]:
    """The k best items of every row, ties by index: a sort of the catalogue per row."""
    ranked = []
    for row in scores:
        ranked.append(sorted(range(len(row)), key=row.__getitem__, reverse=True)[:k])  # a stable sort
    return ranked


class PlainEvaluation:
    """The dictionaries that a script makes once, and the metrics of ranked titles."""

    def __init__(
        self,
        titles: Sequence[str],
        genres: Mapping[str, Sequence[str]],
        kept: Sequence[str],
        popularity: Mapping[str, int],
        histories: Sequence[Sequence[str]],
    ) -> None:
        self.titles, self.genres, self.kept = titles, genres, kept
        self.popularity, self.histories = popularity, histories
        self.kept_of = {title: [genre for genre in genres[title] if genre in kept] for title in titles}
        self.sets = {title: set(genres[title]) for title in titles}
        self.words = {title: re.findall(r"\w+(?:['’]\w+)*", title.casefold()) for title in titles}
        occurrences: dict[str, int] = {}
        for history in histories:
            for title in history:
                for word in self.words[title]:
                    occurrences[word] = occurrences.get(word, 0) + 1
        self.frequent = set(sorted(occurrences, key=lambda word: (-occurrences[word], word))[:20])
        self.group = self._groups()

    def _groups(self) -> dict[str, str]:
        ordered = sorted(self.titles, key=lambda title: -self.popularity[title])
        total = sum(self.popularity.values())
        group = {}
        above = 0
        start = 0
        while start < len(ordered):
            own = self.popularity[ordered[start]]
            end = start
            while end < len(ordered) and self.popularity[ordered[end]] == own:
                end += 1
            at_most = total - above
            name = "head" if 5 * above < total else "tail" if 5 * at_most <= total else "mid"
            for title in ordered[start:end]:
                group[title] = name
            above += own * (end - start)
            start = end
        return group

    def evaluate(self, ranked: Sequence[Sequence[str]], targets: Sequence[str], k: int) -> dict[str, float]:
        """Every metric at k."""
        return {**self._accuracy(ranked, targets, k), **self._spread(ranked, k), **self._rows(ranked, k)} | {
            name: value for counting in ("split", "whole") for name, value in self._unfairness(ranked, k, counting)
        }

    def _accuracy(self, ranked: Sequence[Sequence[str]], targets: Sequence[str], k: int) -> dict[str, float]:
        hits, gain = 0, 0.0
        for row, target in zip(ranked, targets, strict=True):
            for rank, title in enumerate(row[:k]):
                if title == target:
                    hits += 1
                    gain += 1 / math.log2(rank + 2)
                    break
        share = hits / len(ranked)
        return {"hr": share, "hr_se": math.sqrt(share * (1 - share) / len(ranked)), "ndcg": gain / len(ranked)}

    def _spread(self, ranked: Sequence[Sequence[str]], k: int) -> dict[str, float]:
        counts = dict.fromkeys(self.titles, 0)
        places = 0
        for row in ranked:
            for title in row[:k]:
                counts[title] += 1
                places += 1
        ordered = sorted(counts.values())
        total = sum(ordered)
        weighted = 0
        for index, count in enumerate(ordered, start=1):
            weighted += (2 * index - len(ordered) - 1) * count
        distinct = [count for count in ordered if count]
        words = frequent = past_words = past_frequent = 0
        for row in ranked:
            for title in row[:k]:
                words += len(self.words[title])
                frequent += sum(word in self.frequent for word in self.words[title])
        for history in self.histories:
            for title in history:
                past_words += len(self.words[title])
                past_frequent += sum(word in self.frequent for word in self.words[title])
        return {
            "div_ratio": len(distinct) / places,
            "or_ratio": sum(distinct[-3:]) / places,
            "gini": weighted / ((len(ordered) - 1) * total),
            "entropy": -sum(count / total * math.log(count / total) for count in distinct),
            "coverage": len(distinct) / len(ordered),
            "token_bias": frequent / words - past_frequent / past_words,
        }

    def _rows(self, ranked: Sequence[Sequence[str]], k: int) -> dict[str, float]:
        shares = {"head": 0.0, "mid": 0.0, "tail": 0.0}
        events = diversity = 0.0
        for row in ranked:
            for title in row[:k]:
                shares[self.group[title]] += 1 / k
                events += self.popularity[title] / k
            distance = 0.0
            pairs = 0
            for a, b in combinations(row[:k], 2):
                distance += 1 - len(self.sets[a] & self.sets[b]) / len(self.sets[a] | self.sets[b])
                pairs += 1
            diversity += distance / pairs if pairs else 0.0
        n = len(ranked)
        return {f"{name}_share": share / n for name, share in shares.items()} | {
            "arp": events / n,
            "ild": diversity / n,
        }

    def _unfairness(self, ranked: Sequence[Sequence[str]], k: int, counting: str) -> list[tuple[str, float]]:
        sides = []
        for lists in ([row[:k] for row in ranked], self.histories):
            share = dict.fromkeys(self.kept, 0.0)
            for titles in lists:
                for title in titles:
                    kept = self.kept_of[title]
                    for genre in kept:
                        share[genre] += 1 / len(kept) if counting == "split" else 1.0
            total = sum(share.values())
            sides.append({genre: value / total for genre, value in share.items()})
        gaps = [sides[0][genre] - sides[1][genre] for genre in self.kept]
        suffix = "" if counting == "split" else "_whole"
        return [(f"mgu{suffix}", sum(map(abs, gaps)) / len(gaps)), (f"dgu{suffix}", max(gaps) - min(gaps))]
