"""Language models and their adapters on disk: loading, LoRA, 4 bits, the small Llama. Neither trains nor decodes."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "adapters": "load_language_model load_policy read_adapter write_adapter",
        "quantization": "quantized_loading",
        "scratch": "write_untrained_model",
    },
)
