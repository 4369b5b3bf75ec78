"""The catalogue as a trie, and search over it: engine-free, numpy only."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "trie": "Trie build_trie",
        "request": "CatalogSearch",
        "search": "Found search_catalog",
        "ranking": "rank_catalog score_responses",
    },
)
