"""One run around its stages: checks, Ray, resources, whether it may go on or is finished, results. Trains nothing."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "run": "RunOutcome train_selfplay evaluate_on_valid prepare_run",
        "results": "read_results",
    },
)
