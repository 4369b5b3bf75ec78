"""What recommended titles are like: how their genres differ within a list, and which words they repeat."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sprec_ray.metrics.places import Floats, Ints, PlaceCounts, check_places, divide

Bits = npt.NDArray[np.uint64]

NUM_FREQUENT_WORDS = 20
"""How many words of the histories ``token_bias`` looks at."""
_WORD = re.compile(r"\w+(?:['’]\w+)*")


def genre_sets(titles: Sequence[str], genres: Mapping[str, Sequence[str]]) -> Bits:
    """The set of genres of each title as bits, [I, words of 64], over all genres of the catalogue; no word without one.

    >>> genre_sets(["Dune", "Emma"], {"Dune": ["sf", "drama"], "Emma": ["drama"]}).tolist()
    [[3], [1]]
    """
    names = sorted({name for title in titles for name in genres.get(title, ())})
    column = {name: index for index, name in enumerate(names)}
    cells = [(row, column[name]) for row, title in enumerate(titles) for name in genres.get(title, ())]
    sets_IG = np.zeros((len(titles), -(-len(names) // 64) * 64), dtype=np.bool_)
    sets_IG[tuple(np.array(cells, dtype=np.int64).reshape(-1, 2).T)] = True
    return np.packbits(sets_IG, axis=1, bitorder="little").view("<u8").astype(np.uint64)


def ild(ranked_BK: Ints, sets_IW: Bits, *, k: int) -> Floats:
    """Intra-list diversity of each row, [B]: the mean Jaccard distance of the genres of two of its first k items.

    ``1 - |A and B| / |A or B|``, over all pairs of places. The form is that of Ziegler et al., WWW 2005 (there a
    similarity). An item without genres, a title outside the catalogue and an empty place have no distance to another;
    a row without a pair, so every row at k = 1, has NaN.
    """
    check_places(ranked_BK, k)
    if not sets_IW.size:
        return np.full(len(ranked_BK), np.nan)
    inside_BK = (ranked_BK[:, :k] >= 0) & (ranked_BK[:, :k] < len(sets_IW))
    sets_BKW = np.where(inside_BK[:, :, None], sets_IW[np.where(inside_BK, ranked_BK[:, :k], 0)], np.uint64(0))
    sizes_BK = _sizes(sets_BKW)
    first, second = np.triu_indices(k, 1)
    both_BP = _sizes(sets_BKW[:, first] & sets_BKW[:, second])
    pair_BP = (sizes_BK[:, first] > 0) & (sizes_BK[:, second] > 0)
    either_BP = np.where(pair_BP, sizes_BK[:, first] + sizes_BK[:, second] - both_BP, 1)
    ones_P = np.ones(len(first))
    return divide((pair_BP * (1 - both_BP / either_BP)) @ ones_P, pair_BP @ ones_P)


def _sizes(sets: Bits) -> Ints:
    """How many bits are set, over the last axis."""
    counts = np.bitwise_count(sets).astype(np.int64)
    return np.asarray(counts[..., 0] if counts.shape[-1] == 1 else counts.sum(axis=-1))


def title_words(title: str) -> list[str]:
    """The words of a title, case folded: runs of letters, digits and underscores, with apostrophes between them.

    >>> title_words("Schindler's List (1993)")
    ["schindler's", 'list', '1993']
    """
    return _WORD.findall(title.casefold())


def word_counts(titles: Sequence[str], history_H: Ints) -> Ints:
    """How many words each title has, and how many of them are frequent in the histories, [I, 2].

    Frequent are the ``NUM_FREQUENT_WORDS`` words with most occurrences in the titles of the history events, repeats
    included; ties go by the word.
    """
    words = [title_words(title) for title in titles]
    events_I = np.bincount(history_H[history_H >= 0], minlength=len(titles))
    occurrences: Counter[str] = Counter()
    for index in np.flatnonzero(events_I):
        for word in words[index]:
            occurrences[word] += int(events_I[index])
    frequent = set(sorted(occurrences, key=lambda word: (-occurrences[word], word))[:NUM_FREQUENT_WORDS])
    counts = [(len(found), sum(word in frequent for word in found)) for found in words]
    return np.array(counts, dtype=np.int64).reshape(len(titles), 2)


def token_bias(counts: PlaceCounts, history_H: Ints, words_I2: Ints) -> Floats:
    """The share of frequent words among the words of recommended titles less their share in the histories, [R].

    Above 0 a policy prefers titles of words that are frequent anyway. That decoding amplifies likely tokens is the
    finding of arXiv 2406.14900; this measure of it is ours, and of words, so that policies with other tokenizers
    compare. From -1 to 1; 0 is no bias. Titles outside the catalogue add nothing to either side. NaN when either side
    has no word.
    """
    inside = counts.in_catalog(len(words_I2))
    recommended_R2 = inside.counts_RD @ words_I2[inside.titles_D]
    events_I = np.bincount(history_H[history_H >= 0], minlength=len(words_I2))
    history_2 = events_I @ words_I2
    return divide(recommended_R2[:, 1], recommended_R2[:, 0]) - divide(history_2[1], history_2[0])
