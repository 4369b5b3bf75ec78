"""Metrics as pure functions of ranked places, tables made of titles, and whether two policies differ. No files."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "compute": "METRICS compute_metrics",
        "kinds": "CatalogTables Recommendations",
        "significance": "paired_bootstraps",
        "ranks": "rank_scores",
    },
)
