"""The algorithm: its loop over a protocol of stages, and its preference groups. No torch, no Ray, no files."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "loop": "Stages run_self_play",
        "negatives": "drawn_groups mix_random self_play_groups similar_groups",
        "candidate_negatives": "candidate_groups",
        "sft_groups": "genre_weights sft_groups",
    },
)
