"""Losses and optimizer steps of SFT and preference training, in one process of a group; what memory fits. No Ray."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "packing": "TokenGroup",
        "scoring": "make_scorer",
        "losses": "PREFERENCE_LOSSES GroupLogps LossSettings preference_loss",
        "phase": "Phase Worker",
        "fit": "run_phase",
        "memory": "plan_memory",
    },
)
