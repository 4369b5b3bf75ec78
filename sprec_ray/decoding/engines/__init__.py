"""Decoders: the protocol, and what fulfils it on transformers and on vLLM. Nothing else calls an engine to decode."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "protocol": "Decoder",
        "decoder_model": "DecoderModel",
        "guarded_search": "GuardedSearch",
        "make": "make_decoder resolve_engine",
        "lora": "read_lora",
    },
)
