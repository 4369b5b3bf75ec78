"""Many runs at once: sweeps and comparisons."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "tuning": "SweepOutcome tune_sweep",
        "comparing": "compare_methods",
    },
)
