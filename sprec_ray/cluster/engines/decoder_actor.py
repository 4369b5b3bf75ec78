"""The Ray actor that hosts a decoder."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from functools import cached_property, partial
from math import isnan
from typing import Any

import ray

from sprec_ray.cluster.engines.catalog_index import CatalogIndex
from sprec_ray.cluster.engines.hardware import computes_on_gpu, place
from sprec_ray.cluster.engines.parcel import Parcel, SentAdapter
from sprec_ray.config.run import DecodingConfig
from sprec_ray.decoding.arrays import Floats
from sprec_ray.decoding.catalog.request import CatalogSearch
from sprec_ray.decoding.engines.decoder_model import DecoderModel
from sprec_ray.decoding.engines.make import make_decoder
from sprec_ray.decoding.engines.protocol import Decoder

SharedIndex = tuple[Any]
"""The pool's ``CatalogIndex`` in Ray's object store, in a tuple so that a call does not read it."""

Answers = dict[str, Any]
"""The fields of a ``Rollout`` but for its example."""


class DecoderActor:
    """Hosts a ``Decoder`` in a Ray actor. Every call carries its adapter, so a restarted actor decodes with it too."""

    def __init__(
        self, config: DecodingConfig, model: DecoderModel, *, seed: int, model_files: bytes | None = None
    ) -> None:
        import torch
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        torch.set_num_threads(num_threads(config))
        if model_files is not None:
            parcel: Parcel = ray.cloudpickle.loads(model_files)
            model = dataclasses.replace(model, path=parcel.local())
        on_gpu = computes_on_gpu(config.gpus_per_decoder)
        self._make = partial(make_decoder, config, model, use_gpu=on_gpu, seed=seed)
        if config.placement != "colocate" or not ray.get_runtime_context().was_current_actor_reconstructed:
            _ = self._decoder  # else it died asleep, maybe, and the trainers hold the GPU: the next call starts it
        self._adapter: SentAdapter | None = None
        self._index: CatalogIndex | None = None

    @cached_property
    def _decoder(self) -> Decoder:
        return self._make()

    def engine(self) -> str:
        """The engine's name and version."""
        return self._decoder.engine

    def place(self) -> str:
        """Where the actor runs."""
        return place()

    def process_id(self) -> int:
        """The operating system's id of the actor's process."""
        return os.getpid()

    def load_adapter(self, adapter: SentAdapter | None) -> None:
        """Swap to the adapter unless it is the current one."""
        if adapter != self._adapter:
            self._adapter = None  # where a failed swap leaves the decoder
            self._decoder.load_adapter(None if adapter is None else adapter.local())
            self._adapter = adapter

    def decode(
        self,
        adapter: SentAdapter | None,
        prompts: Sequence[Sequence[int]],
        *,
        beam_width: int,
        max_new_tokens: int,
    ) -> list[Answers]:
        """The hypotheses of a chunk under the adapter, in free text."""
        self.load_adapter(adapter)
        decoded = self._decoder.decode(prompts, beam_width=beam_width, max_new_tokens=max_new_tokens)
        return [{"hypotheses": hypotheses} for hypotheses in decoded]

    def search(
        self,
        adapter: SentAdapter | None,
        prompts: Sequence[Sequence[int]],
        shared: SharedIndex,
        *,
        search: CatalogSearch,
        seeds: Sequence[int],
        item_logps: Floats | None = None,
    ) -> list[Answers]:
        """The catalogue's answers to a chunk under the adapter."""
        self.load_adapter(adapter)
        index = self._read(shared)
        answers = self._decoder.catalog.search(index.trie, prompts, search, seeds=seeds, item_logps=item_logps)
        return [
            {"hypotheses": index.hypotheses(found), "gap": None if isnan(found.gap) else found.gap} for found in answers
        ]

    def rank(
        self,
        adapter: SentAdapter | None,
        prompts: Sequence[Sequence[int]],
        shared: SharedIndex,
        *,
        targets: Sequence[str],
        search: CatalogSearch,
        item_logps: Floats | None = None,
    ) -> list[Answers]:
        """The best titles of the whole catalogue, and the place and log-probability of each target.

        They are ranked as ``search`` ranks: by log-probability, ``item_logps`` weighed against it.
        """
        self.load_adapter(adapter)
        index = self._read(shared)
        logps_PI = self._decoder.catalog.rank(index.trie, prompts)
        g = search.lm_weight
        scores_PI = logps_PI if item_logps is None else g * logps_PI + (1 - g) * item_logps
        return index.ranked(logps_PI, scores_PI, targets, search.num_answers)

    def _read(self, shared: SharedIndex) -> CatalogIndex:
        """The index of the pool, read once; a decoder that started again reads it again."""
        if self._index is None:
            self._index = ray.get(shared[0])
        return self._index

    def score(self, adapter: SentAdapter | None, prompt: Sequence[int], response: Sequence[int]) -> list[float]:
        """The log-probability of a response under the adapter, in nats: as ``decode`` and as ``search`` compute it."""
        self.load_adapter(adapter)
        return [self._decoder.score(prompt, response, tree=tree) for tree in (False, True)]

    def sleep(self) -> None:
        """Leave the GPU to a trainer."""
        if "_decoder" in self.__dict__:
            self._decoder.sleep()

    def wake(self) -> None:
        """Be ready to decode again."""
        self._decoder.wake()


def num_threads(config: DecodingConfig) -> int:
    """CPU threads of a decoder."""
    return max(1, int(config.cpus_per_decoder))
