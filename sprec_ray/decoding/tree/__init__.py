"""A tree of tokens per prompt on a language model, with the prompt computed once. No knowledge of titles."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "interface": "NewTokens TreeModel Wanted",
        "rows": "KeyValues TreeRows",
        "paths": "TreePaths",
    },
)
