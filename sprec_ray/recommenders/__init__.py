"""Recommenders of item ids: the baselines, and the second opinion of D3 and RosePO. No language model."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "fit": "fit_recommender last_item_scores",
        "recommender": "Recommender read_recommender",
    },
)
