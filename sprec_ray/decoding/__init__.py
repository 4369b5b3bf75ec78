"""Answers of a language model: search over a catalogue's titles and free beams, on any engine. No training, no Ray."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "catalog.request": "CatalogSearch",
        "catalog.search": "Found search_catalog",
        "catalog.trie": "Trie build_trie",
        "engines.protocol": "Decoder",
        "engines.decoder_model": "DecoderModel",
        "engines.make": "make_decoder resolve_engine",
    },
)
