"""Grounding (BIGRec, arXiv 2308.08434): generated text to the nearest catalogue items in embedding space.

Dimensions: ``B`` texts, ``I`` catalogue titles, ``D`` embedding width, ``K`` ranked places.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from sprec_ray.data.catalog import Catalog
from sprec_ray.data.prompts import parse_response

Embedder = Callable[[Sequence[str]], npt.NDArray[np.float32]]
"""Texts to embeddings, [N, D]; it must not depend on which texts it is called with together."""

_QUERY_CHUNK = 256
_CATALOG_CHUNK = 4096
_TIE_TOLERANCE = 1e-11
"""Share of the squared norms by which two float64 matrix products of equal rows may differ; generous."""


def ground_texts(texts: Sequence[str], catalog: Catalog, embed: Embedder, *, k: int) -> npt.NDArray[np.int64]:
    """The k catalogue indices nearest to each text, [B, k], nearest first, ties by index.

    Each distinct text is embedded once, all in one call of ``embed``. A text that is a catalogue title takes that
    title's embedding: its own item is at distance 0 and comes first, whatever rounding an embedder does.
    """
    queries_QD, catalog_ID, inverse_B = _embed_distinct(texts, catalog, embed)
    return nearest(queries_QD, catalog_ID, k=k)[inverse_B]


def ground_adjusted(
    texts: Sequence[str],
    catalog: Catalog,
    embed: Embedder,
    shares_BI: npt.NDArray[np.float64],
    *,
    gamma: float,
    k: int,
) -> npt.NDArray[np.int64]:
    """``ground_texts`` with a second opinion (BIGRec, arXiv 2308.08434): the k titles of least score, [B, k].

    The score of a title is its L2 distance, from 0 for the nearest to 1 for the farthest of a row, over (1 + its share)
    to the power gamma; shares are from 0 to 1 (see adjustment.py). The nearest title keeps score 0 and the first place.
    Raises as ``nearest``.
    """
    queries_QD, catalog_ID, inverse_B = _embed_distinct(texts, catalog, embed)
    _check(queries_QD, catalog_ID, k)
    ranked_BK = np.empty((len(texts), k), dtype=np.int64)
    centre_D, everything = catalog_ID.mean(axis=0, dtype=np.float64), np.arange(len(catalog_ID))
    for query, query_D in enumerate(queries_QD):
        distance_I = np.sqrt(_exact_distances(query_D - centre_D, catalog_ID, centre_D, everything))
        distance_I -= distance_I.min()
        distance_I /= distance_I.max() or 1.0
        for row in np.flatnonzero(inverse_B == query):
            score_I = distance_I * (1 + shares_BI[row]) ** -gamma
            ranked_BK[row] = np.argsort(score_I, kind="stable")[:k]
    return ranked_BK


def _embed_distinct(
    texts: Sequence[str], catalog: Catalog, embed: Embedder
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Embeddings of the distinct texts and of the catalogue, and which of the former each text has."""
    distinct, inverse_B = unique_texts(texts)
    rows, asked = [], list(catalog.titles)
    for text in distinct:
        index = catalog.index_of(text)
        rows.append(len(asked) if index is None else index)
        if index is None:
            asked.append(text)
    embeddings_AD = embed(asked)
    return embeddings_AD[np.array(rows, dtype=np.int64)], embeddings_AD[: len(catalog)], inverse_B


def nearest(
    queries_BD: npt.NDArray[np.float32], catalog_ID: npt.NDArray[np.float32], *, k: int
) -> npt.NDArray[np.int64]:
    """The k rows of ``catalog_ID`` with the smallest L2 distance to each query, [B, k], ties by index.

    Distances are screened as ``|c|^2 - 2 q.c`` in float64 and the short list is computed again as ``|q - c|^2``, so
    that cancellation reorders nothing and equal rows tie exactly. Memory: ``256 * I`` float64 and a few chunks.

    Raises ValueError when k exceeds the catalogue or an embedding is not finite.
    """
    _check(queries_BD, catalog_ID, k)
    # Hidden states share a large common vector; distances do not feel it, products would drown in it.
    centre_D = catalog_ID.mean(axis=0, dtype=np.float64)
    ranked_BK = np.empty((len(queries_BD), k), dtype=np.int64)
    for start in range(0, len(queries_BD), _QUERY_CHUNK):
        chunk_QD = queries_BD[start : start + _QUERY_CHUNK] - centre_D
        screened_QI, scale = _screen(chunk_QD, catalog_ID, centre_D)
        tolerance_Q = _TIE_TOLERANCE * ((chunk_QD**2).sum(axis=1) + scale)
        limit_Q = np.partition(screened_QI, k - 1, axis=1)[:, k - 1] + tolerance_Q
        for row, (query_D, limit) in enumerate(zip(chunk_QD, limit_Q, strict=True)):
            short_list = np.flatnonzero(screened_QI[row] <= limit)
            exact = _exact_distances(query_D, catalog_ID, centre_D, short_list)
            ranked_BK[start + row] = short_list[np.argsort(exact, kind="stable")[:k]]
    return ranked_BK


def _check(queries_BD: npt.NDArray[np.float32], catalog_ID: npt.NDArray[np.float32], k: int) -> None:
    if k > len(catalog_ID):
        raise ValueError(f"k={k} exceeds the catalogue's {len(catalog_ID)} titles; ask for a smaller k")
    for name, matrix in (("generated", queries_BD), ("catalogue", catalog_ID)):
        if not np.isfinite(matrix).all():
            raise ValueError(
                f"{name} embeddings are not finite; the model's weights have diverged or overflow its dtype"
            )


def unique_texts(texts: Sequence[str]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The distinct texts in order of first appearance, and for each text its position among them.

    >>> unique_texts(["b", "a", "b"])
    (['b', 'a'], array([0, 1, 0]))
    """
    positions: dict[str, int] = {}
    inverse = [positions.setdefault(text, len(positions)) for text in texts]
    return list(positions), np.array(inverse, dtype=np.int64)


def text_to_ground(generated: str) -> str:
    r"""The title a response names; of a response that does not parse, its first line without outer quotes and spaces.

    An empty response gives the empty text, which grounds to whatever its embedding is nearest to: a model that says
    nothing is scored like one that says something wrong, and counted as a parse failure.

    >>> text_to_ground('"Dune\nmore')
    'Dune'
    """
    title = parse_response(generated)
    return generated.split("\n", 1)[0].strip().strip('"').strip() if title is None else title


def sentence_embedder(model_name: str) -> Embedder:
    """An embedder that runs a sentence-transformers model; SPRec's published code uses paraphrase-MiniLM-L3-v2."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ValueError(
            f"sentence embeddings ({model_name}) need sentence-transformers: pip install 'sprec-ray[sentence]'"
        )
    model = importlib.import_module("sentence_transformers").SentenceTransformer(model_name)

    def embed(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.asarray(model.encode(list(texts), show_progress_bar=False), dtype=np.float32)

    return embed


def _screen(
    chunk_QD: npt.NDArray[np.float64], catalog_ID: npt.NDArray[np.float32], centre_D: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], float]:
    """Squared distances less each query's own norm, [Q, I], and the largest squared norm of a catalogue row."""
    screened_QI = np.empty((len(chunk_QD), len(catalog_ID)))
    scale = 0.0
    for first in range(0, len(catalog_ID), _CATALOG_CHUNK):
        part_CD = catalog_ID[first : first + _CATALOG_CHUNK] - centre_D
        norms_C = np.einsum("cd,cd->c", part_CD, part_CD)
        screened_QI[:, first : first + len(part_CD)] = norms_C - 2 * (chunk_QD @ part_CD.T)
        scale = max(scale, float(norms_C.max()))
    return screened_QI, scale


def _exact_distances(
    query_D: npt.NDArray[np.float64],
    catalog_ID: npt.NDArray[np.float32],
    centre_D: npt.NDArray[np.float64],
    rows: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    parts = [rows[first : first + _CATALOG_CHUNK] for first in range(0, len(rows), _CATALOG_CHUNK)]
    return np.concatenate([(((catalog_ID[part] - centre_D) - query_D) ** 2).sum(axis=1) for part in parts])
