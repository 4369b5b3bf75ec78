"""One run from its checks to its report: Ray, resources, resume, results."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "run": "RunOutcome train_selfplay evaluate_on_valid prepare_run",
        "results": "read_results",
    },
)
