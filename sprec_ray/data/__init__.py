"""Raw files to examples, prompts and token ids: readers, then pure functions. No torch; of run files the catalogue."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "catalog": "Catalog",
        "candidate_lists": "with_candidates",
        "prompts": "render_prompt render_response parse_response",
        "sequences": "derive_rng",
        "tokens": "TextSettings TokenEncoder",
    },
)
