"""What a run does: each stage a function from files to files, done once."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "pipeline": "RayStages",
        "pair_pipeline": "PairStages",
        "run_data": "RunData Split",
    },
)
