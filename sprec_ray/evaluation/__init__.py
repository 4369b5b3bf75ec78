"""What a policy's answers are worth: texts to titles to metrics, under each protocol. Trains and decodes nothing."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "evaluate": "EvaluationTask evaluate_predictions evaluate_ranking",
        "grounding": "ground_texts sentence_embedder",
        "adjustment": "Adjustment",
        "choices": "evaluate_candidates",
        "pairs": "pair_metrics",
        "embedding": "embed_texts",
        "predictions": "score_predictions",
    },
)
