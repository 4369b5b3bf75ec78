"""The page and files of a sweep."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "page": "write_sweep_report",
        "results": "SweepData TrialRecord read_sweep",
        "chosen_trial": "choose_trial pareto_front",
        "rows": "sweep_rows",
    },
)
