"""The configured engine: which one it is on this machine, and its decoder."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Literal

from sprec_ray.decoding.engines.decoder_model import DecoderModel
from sprec_ray.decoding.engines.protocol import Decoder

if TYPE_CHECKING:  # so that a decoder runs without pydantic, where it is profiled alone
    from sprec_ray.config.run import DecodingConfig

logger = logging.getLogger(__name__)


def resolve_engine(config: DecodingConfig) -> Literal["vllm", "transformers"]:
    """The engine that ``decoding.engine`` stands for on this machine."""
    if config.engine != "auto":
        return config.engine
    return "vllm" if importlib.util.find_spec("vllm") is not None else "transformers"


def make_decoder(config: DecodingConfig, model: DecoderModel, *, use_gpu: bool, seed: int) -> Decoder:
    """The decoder of ``config.engine``; ``auto`` takes vLLM where it is installed.

    ``config`` gives the engine and its memory; ``seed`` only seeds vLLM's generator, decoding draws nothing.
    Raises ValueError when vLLM is asked for by name and not installed.
    """
    match resolve_engine(config):
        case "vllm":
            if importlib.util.find_spec("vllm") is None:
                raise ValueError(
                    "decoding.engine=vllm but vllm is not installed; install it, or set decoding.engine=transformers"
                )
            from sprec_ray.decoding.engines.vllm.decoder import VllmDecoder

            decoder: Decoder = VllmDecoder(config, model, use_gpu=use_gpu, merge_adapters=not use_gpu, seed=seed)
        case "transformers":
            from sprec_ray.decoding.engines.transformers import TransformersDecoder

            decoder = TransformersDecoder(model, use_gpu=use_gpu)
    logger.info("decoding.engine=%s: decoding with %s", config.engine, decoder.engine)
    return decoder
