"""The contenders of catalog_decoding.py that are this project's; each runs in a process of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from catalog_data import grow_catalog, in_catalog_share, text_encoder

from sprec_ray.config.run import DecodingConfig
from sprec_ray.decoding.catalog.request import CatalogSearch
from sprec_ray.decoding.catalog.search import Found
from sprec_ray.decoding.catalog.trie import Trie, build_trie
from sprec_ray.decoding.engines.decoder_model import DecoderModel
from sprec_ray.decoding.engines.make import make_decoder
from sprec_ray.decoding.engines.protocol import Decoder
from sprec_ray.types import AdapterCheckpoint

WIDEST = 20
WARM_UP = 32
"""Prompts that are decoded before the clock runs."""


@dataclass(frozen=True, slots=True)
class Work:
    """What every contender is given: a folder written by ``write``."""

    folder: Path
    model: str
    titles: list[str]
    prompts: list[list[int]]
    max_tokens: int
    """Tokens that 95 % of the titles need."""

    @classmethod
    def read(cls, folder: str) -> Work:
        """The work of a folder."""
        return cls(Path(folder), **json.loads((Path(folder) / "work.json").read_text()))

    def write(self) -> None:
        """Write the work's folder."""
        values = {name: getattr(self, name) for name in ("model", "titles", "prompts", "max_tokens")}
        (self.folder / "work.json").write_text(json.dumps(values))

    def trie(self, size: int) -> Trie:
        """The trie of the titles, grown to so many; built once."""
        folder = self.folder / f"trie-{size}"
        trie = Trie.read(folder, key=str(size))
        if trie is None:
            encoder = text_encoder(self.tokenizer())
            trie = build_trie(
                [encoder.response(title) for title in grow_catalog(self.titles, size)],
                eos_token_id=encoder.tokenizer.eos_token_id,
            )
            trie.write(folder, key=str(size))
        return trie

    def tokenizer(self) -> Any:
        """The model's."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.model)

    def positions(self) -> int:
        """The model's longest text."""
        return int(json.loads((Path(self.model) / "config.json").read_text())["max_position_embeddings"])

    def decoder(self, engine: Literal["vllm", "transformers"]) -> Decoder:
        """Our decoder on an engine."""
        model = DecoderModel(path=self.model, max_model_len=self.positions(), max_beam_width=WIDEST)
        return make_decoder(DecodingConfig(engine=engine), model, use_gpu=False, seed=0)


def timed(action: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[float, Any]:
    """Seconds of a call, and what it returned."""
    start = time.perf_counter()
    result = action(*arguments, **options)
    return time.perf_counter() - start, result


def searched(
    work: Work, *, engine: Literal["vllm", "transformers"], size: int, kinds: Sequence[str], beams: Sequence[int]
) -> dict[str, Any]:
    """All prompts in one call: seconds, the answers, and what they cost."""
    decoder, trie = work.decoder(engine), work.trie(size)
    seconds, answers, tokens, mass = {}, {}, {}, {}
    for kind in kinds:
        for width in beams:
            search = CatalogSearch(kind=kind, num_answers=width)  # type: ignore[arg-type]
            decoder.catalog.search(trie, work.prompts[:WARM_UP], search)
            key = f"{kind} {width}"
            seconds[key], found = timed(decoder.catalog.search, trie, work.prompts, search)
            answers[key] = [as_lists(one) for one in found]
            tokens[key] = float(np.mean([one.num_tokens for one in found]))
            mass[key] = float(np.mean([np.exp(one.logps).sum() for one in found]))
    return {
        "seconds": seconds,
        "count": len(work.prompts),
        "answers": answers,
        "tokens": tokens,
        "mass": mass,
        "in_catalog": {key: _share(work, trie, size, found) for key, found in answers.items()},
    }


def as_lists(found: Found) -> tuple[list[int], list[float]]:
    """The answers' leaves and log-probabilities."""
    return found.leaves.tolist(), found.logps.tolist()


def _share(work: Work, trie: Trie, size: int, answers: Sequence[tuple[list[int], list[float]]]) -> float:
    """The share of answers whose decoded text is a title of the catalogue."""
    leaves = sorted({leaf for found, _ in answers for leaf in found})
    eos, tokenizer = work.tokenizer().eos_token_id, work.tokenizer()
    texts = [
        tokenizer.decode([token for token in trie.tokens_to(leaf) if token != eos], clean_up_tokenization_spaces=False)
        for leaf in leaves
    ]
    return in_catalog_share(texts, grow_catalog(work.titles, size))


def decoded(work: Work, *, beams: Sequence[int], count: int) -> dict[str, Any]:
    """Free beams on vLLM, the catalogue left aside."""
    decoder: Any = work.decoder("vllm")  # what only vLLM has is called below
    prompts, seconds = work.prompts[:count], {}
    for width in beams:
        decoder.decode(prompts[:2], beam_width=width, max_new_tokens=work.max_tokens)
        decoder._forget_prefixes()
        seconds[f"ours {width}"], _ = timed(decoder.decode, prompts, beam_width=width, max_new_tokens=work.max_tokens)
    return {"seconds": seconds, "count": len(prompts)}


def ranked(work: Work, *, size: int, count: int) -> dict[str, Any]:
    """The true ten most probable items, from the log-probabilities of all; and the catalogue's mass."""
    decoder, trie = work.decoder("transformers"), work.trie(size)
    leaf_of_items = trie.leaf_of_items()
    seconds, logps = timed(decoder.catalog.rank, trie, work.prompts[:count])
    best = np.argsort(-logps, axis=1, kind="stable")[:, :10]
    return {
        "seconds": {"rank": seconds},
        "count": len(logps),
        "best": [[int(leaf) for leaf in leaf_of_items[row]] for row in best],
        "logps": np.take_along_axis(logps, best, axis=1).tolist(),
        "mass": float(np.exp(logps).sum(axis=1).mean()),
    }


def grown(work: Work, *, size: int, count: int) -> dict[str, Any]:
    """What a larger catalogue costs: its tokens, its trie, and searches over it."""
    titles, encoder, prompts = grow_catalog(work.titles, size), text_encoder(work.tokenizer()), work.prompts[:count]
    seconds: dict[str, float] = {}
    seconds["tokenize"], responses = timed(lambda: [encoder.response(title) for title in titles])
    eos = encoder.tokenizer.eos_token_id
    seconds["build"], trie = timed(build_trie, responses, eos_token_id=eos)
    num_tokens = sum(map(len, responses))
    arrays = (trie.token_n, trie.first_child_n, trie.first_item_n, trie.last_item_n, trie.items)
    decoder = work.decoder("transformers")
    found: dict[str, list[Found]] = {}
    for kind in ("exact", "beam"):
        search = CatalogSearch(kind=kind, num_answers=10)
        decoder.catalog.search(trie, prompts[:WARM_UP], search)
        seconds[kind], found[kind] = timed(decoder.catalog.search, trie, prompts, search)
    return {
        "seconds": seconds,
        "count": len(prompts),
        "num_tokens": num_tokens,
        "num_nodes": trie.num_nodes,
        "num_bytes": sum(array.nbytes for array in arrays),
        "tokens": {kind: float(np.mean([one.num_tokens for one in answers])) for kind, answers in found.items()},
        "unfinished": sum(one.gap > 0 for one in found["exact"]),
    }


def swapped(work: Work, *, engine: Literal["vllm", "transformers"], swaps: int = 6) -> dict[str, Any]:
    """Seconds to start an engine and to change its adapter, and whether a swap leaves anything behind."""
    adapters = [_adapter(work, version) for version in (1, 2)]
    prompt, response = work.prompts[0], text_encoder(work.tokenizer()).response(work.titles[0])
    seconds: dict[str, float] = {}
    seconds["start"], decoder = timed(work.decoder, engine)
    plain = decoder.score(prompt, response)
    seconds["first load"], _ = timed(decoder.load_adapter, adapters[0])
    first, later = decoder.score(prompt, response), []
    for number in range(1, swaps + 1):
        later.append(timed(decoder.load_adapter, adapters[number % 2])[0])
    seconds["later swap"] = float(np.median(later))
    again = decoder.score(prompt, response)
    decoder.load_adapter(None)
    left = max(abs(again - first), abs(decoder.score(prompt, response) - plain))
    assert first != plain, "the adapter changed nothing"
    return {"seconds": seconds, "count": 1, "left": left}


def _adapter(work: Work, version: int) -> AdapterCheckpoint:
    """An adapter of rank 16 on all projections with random weights, written once."""
    folder = work.folder / f"adapter-{version}"
    if not folder.exists():
        import torch
        from transformers import AutoModelForCausalLM

        from sprec_ray.config.run import LoraConfig
        from sprec_ray.models.adapters import attach_adapter, write_adapter

        model = attach_adapter(
            AutoModelForCausalLM.from_pretrained(work.model), LoraConfig(), dropout=0.0, seed=version
        )
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)
        write_adapter(model, folder)
    return AdapterCheckpoint(path=str(folder), version=version)
