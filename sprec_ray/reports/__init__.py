"""What people read: pages, tables and files of a run, a sweep, a comparison. Trains, decodes, grounds nothing."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "tables": "format_table results_table column_of",
        "markup": "page",
        "paper": "differences_from_paper",
    },
)
