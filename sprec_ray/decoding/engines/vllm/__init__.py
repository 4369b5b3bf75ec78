"""The decoder on vLLM; nothing else imports vLLM."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "decoder": "VllmDecoder",
    },
)
