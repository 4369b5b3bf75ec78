"""The page of a run."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "page": "ReportData write_report",
    },
)
