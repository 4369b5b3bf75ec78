"""What catalog_decoding.py decodes: a catalogue, histories, and the small Llama that has read them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

NUM_TITLES, NUM_TRAIN, NUM_TEST, NUM_GENRES = 4058, 4096, 1000, 40
MAX_PROMPT_TOKENS, MAX_RESPONSE_TOKENS = 400, 48
TRAIN_STEPS, TRAIN_BATCH, LEARNING_RATE = 400, 16, 2e-3

Pairs = list[tuple[tuple[str, ...], str]]
"""Histories and the title after each."""


@dataclass(frozen=True, slots=True)
class Data:
    """A catalogue and its examples."""

    name: str
    titles: tuple[str, ...]
    train: Pairs
    test: Pairs


def read_data(folder: str | None) -> Data:
    """The data of a folder in SPRec's format, or synthetic data of the same size."""
    if folder is None:
        return synthetic_data()
    from sprec_ray.config.data import DataConfig
    from sprec_ray.data.catalog import Catalog
    from sprec_ray.data.sources.sprec import read_sprec

    source = read_sprec(DataConfig(source="sprec", path=folder, noun="book", template="short"))
    assert source.splits is not None
    train, test = ([(example.history, example.target) for example in source.splits[name]] for name in ("train", "test"))
    return Data("given", Catalog.from_items(source.items).titles, train, test)


def synthetic_data() -> Data:
    """Series and single books of 40 genres; a history follows series within two genres, popular ones more often."""
    rng = random.Random(0)
    words = _words(rng)
    weights = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))

    def phrase(least: int, most: int) -> str:
        return " ".join(rng.choices(words, cum_weights=weights, k=rng.randint(least, most))).title()

    genres: list[list[list[str]]] = [[] for _ in range(NUM_GENRES)]
    titles: dict[str, None] = {}
    while len(titles) < NUM_TITLES:
        series, count = phrase(1, 3), min(rng.choice((1, 1, 2, 3, 4, 6)), NUM_TITLES - len(titles))
        books = [phrase(1, 5) + (f" ({series}, #{number})" if count > 1 else "") for number in range(1, count + 1)]
        books = [book for book in books if book not in titles]
        titles.update(dict.fromkeys(books))
        if books:
            rng.choice(genres).append(books)
    pairs = [_history(rng, genres) for _ in range(NUM_TRAIN + NUM_TEST)]
    return Data("synthetic", tuple(titles), pairs[:NUM_TRAIN], pairs[NUM_TRAIN:])


def _words(rng: random.Random) -> list[str]:
    syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "el", "or")]
    found = ["the", "of", "and", "a"]
    found += {"".join(rng.choices(syllables, k=rng.choice((1, 2, 2, 3)))): None for _ in range(6000)}
    return found


def _history(rng: random.Random, genres: Sequence[Sequence[Sequence[str]]]) -> tuple[tuple[str, ...], str]:
    liked, length, read = rng.sample(genres, 2), rng.choice((8, 10, 11, 11, 11, 11)), dict[str, None]()
    while len(read) < length:
        genre = liked[rng.random() < 0.25]
        books = genre[int(len(genre) * rng.random() ** 2)]
        read.update(dict.fromkeys(books[: rng.randint(1, 4)]))
    *history, target = list(read)[:length]
    return tuple(history), target


def grow_catalog(titles: Sequence[str], size: int) -> list[str]:
    """The titles, and distinct ones beside them that begin like one of them and end like another."""
    rng, longest = random.Random(1), max(map(len, titles))
    words = [title.split() for title in titles]
    found = dict.fromkeys(titles)
    while len(found) < size:
        first, last = rng.choice(words), rng.choice(words)
        made = " ".join(first[: rng.randint(1, len(first))] + last[rng.randrange(len(last)) :])
        if len(made) <= longest:
            found[made] = None
    return list(found)


def text_encoder(tokenizer: Any) -> Any:
    """The package's rendering with the short template, as of configs/goodreads.yaml."""
    from sprec_ray.data.tokens import TokenEncoder

    return TokenEncoder(
        tokenizer,
        template="short",
        noun="book",
        max_prompt_tokens=MAX_PROMPT_TOKENS,
        max_response_tokens=MAX_RESPONSE_TOKENS,
    )


def trained_model(data: Data, cache: Path, threads: int) -> str:
    """The folder of the small Llama, trained now unless it is in the cache."""
    import hashlib

    settings = [data.titles, data.train, TRAIN_STEPS, TRAIN_BATCH, LEARNING_RATE]
    folder = cache / f"catalog-model-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]}"
    if not (folder / "finished").exists():
        from sprec_ray.config.data import ScratchConfig
        from sprec_ray.data.prompts import render_prompt, render_response
        from sprec_ray.models.scratch import write_untrained_model

        texts = [
            render_prompt(history, template="short", noun="book") + render_response(title)
            for history, title in data.train
        ]
        write_untrained_model(
            folder,
            [*map(render_response, data.titles), *texts],
            ScratchConfig(),
            max_positions=MAX_PROMPT_TOKENS + MAX_RESPONSE_TOKENS,
        )
        _train(folder, data.train, threads)
        (folder / "finished").touch()
    return str(folder)


def _train(folder: Path, pairs: Pairs, threads: int) -> None:
    """Next-token training on whole texts, prompt and title."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    encoder: Any = text_encoder(AutoTokenizer.from_pretrained(folder))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = [[*encoder.prompt(history), *encoder.response(title)] for history, title in pairs]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=TRAIN_STEPS, pct_start=0.1)
    rng = random.Random(0)
    for _ in range(TRAIN_STEPS):
        batch = rng.sample(rows, TRAIN_BATCH)
        ids = torch.full((TRAIN_BATCH, max(map(len, batch))), -100)
        for row, tokens in zip(ids, batch, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        loss = model(input_ids=ids.clamp(min=0), attention_mask=(ids >= 0).long(), labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


def in_catalog_share(texts: Iterable[str], titles: Iterable[str]) -> float:
    """The share of responses that name a title of the catalogue."""
    from sprec_ray.data.prompts import parse_response

    known = set(titles)
    hits = [parse_response(text) in known for text in texts]
    return sum(hits) / max(1, len(hits))


def percentile(values: Sequence[int], share: float) -> int:
    """The smallest value that covers this share of them."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
