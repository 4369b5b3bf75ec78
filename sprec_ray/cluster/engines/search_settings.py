"""What a configuration asks of decoders: their model, and what to look for in the catalogue."""

from __future__ import annotations

from sprec_ray.config.run import RunConfig
from sprec_ray.data.sequences import derive_rng
from sprec_ray.decoding.catalog.request import CatalogSearch
from sprec_ray.decoding.engines.decoder_model import DecoderModel


def negatives_search(config: RunConfig, iteration: int) -> CatalogSearch | int:
    """What to decode for the negatives of an iteration: of the catalogue, or so many free beams.

    2N answers as in arXiv 2412.09243, section 5.4.2; more where titles of the history will be dropped, so that N stay.
    """
    selfplay = config.selfplay
    num_answers = 1 if selfplay.negatives == "greedy" else 2 * selfplay.num_negatives
    num_answers += config.data.max_history if selfplay.exclude_history else 0
    if selfplay.negatives != "sample":
        return _most_probable(config, num_answers)
    return CatalogSearch(
        kind="sample",
        num_answers=num_answers,
        max_tokens=config.decoding.max_search_tokens,
        temperature=selfplay.temperature,
        seed=int(derive_rng(config.seed, f"sampled negatives/{iteration}").integers(2**31)),
    )


def evaluation_search(config: RunConfig) -> CatalogSearch | int:
    """What to decode for the rows that a policy is measured on; a text that is grounded is one answer."""
    if config.data.task == "candidates":
        return 1  # the greedy text, as published
    return _most_probable(config, max(config.evaluation.k) if config.evaluation.searches else 1)


def max_beam_width(config: RunConfig) -> int:
    """The most free beams that a run decodes."""
    searches = [evaluation_search(config), 1]
    if config.selfplay.asks_the_policy:
        searches.append(negatives_search(config, 0))
    return max(search for search in searches if isinstance(search, int))


def decoder_model(config: RunConfig, path: str, *, max_beam_width: int) -> DecoderModel:
    """What decoders are told of the model of a run."""
    model, decoding = config.model, config.decoding
    return DecoderModel(
        path=path,
        dtype=model.dtype,
        max_model_len=model.max_prompt_tokens + model.max_response_tokens,
        max_beam_width=max_beam_width,
        lora_rank=model.lora.rank,
        search_cache_gib=decoding.search_cache_gib,
        trust_remote_code=model.trust_remote_code,
        quantization=model.quantization,
        tensor_parallel_size=decoding.tensor_parallel_size,
    )


def _most_probable(config: RunConfig, num_answers: int) -> CatalogSearch | int:
    decoding = config.decoding
    if decoding.search == "free":
        return num_answers
    return CatalogSearch(
        kind=decoding.search,
        num_answers=num_answers,
        beam_width=max(decoding.beam_width, num_answers),
        max_tokens=decoding.max_search_tokens,
        renormalize=decoding.renormalize,
    )
