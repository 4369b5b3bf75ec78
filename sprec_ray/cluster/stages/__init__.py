"""What a run does: its stages from files to files, each done once, as methods of two classes, with their helpers."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "pipeline": "RayStages",
        "pair_pipeline": "PairStages",
        "run_data": "RunData Split",
    },
)
