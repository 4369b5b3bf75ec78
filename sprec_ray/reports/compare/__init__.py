"""The page and files of a comparison, the tests of differences over its runs' folders, and the published numbers."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "page": "write_compare_report",
        "results": "CompareData MethodRecord RunRecord read_comparison",
        "published": "PUBLISHED published_table",
        "differences": "bootstrap_differences",
    },
)
