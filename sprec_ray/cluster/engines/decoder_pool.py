"""The pool of Ray actors that decode: alive for the run, adapters swapped by version, order restored."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from sprec_ray.cluster.engines.catalog_index import CatalogIndex
from sprec_ray.cluster.engines.decoder_actor import DecoderActor, num_threads
from sprec_ray.cluster.engines.delivery import Delivery, PendingDecode, PromptRow, chunk_file, kept_chunk
from sprec_ray.cluster.engines.hardware import environment
from sprec_ray.cluster.engines.parcel import Parcel, SentAdapter, send
from sprec_ray.cluster.engines.progress import DecodeProgress
from sprec_ray.config.run import DecodingConfig
from sprec_ray.decoding.arrays import Floats
from sprec_ray.decoding.catalog.request import CatalogSearch
from sprec_ray.decoding.engines.decoder_model import DecoderModel
from sprec_ray.storage.artifacts import write_rows
from sprec_ray.types import AdapterCheckpoint, Rollout

logger = logging.getLogger(__name__)

_MAX_RESTARTS = 2
"""How often a dead decoder is started again, and its chunk decoded again."""
_CHUNKS_PER_DECODER = 2
"""In flight: one is decoded, the next waits at the actor."""
_WAIT_S = 60.0
"""After this long without a decoder the log says what the cluster has free."""


class DecodingError(RuntimeError):
    """A decoder failed; the message is one line with the cause."""


class DecoderPool:
    """``config.num_decoders`` decoders, started at once and alive until ``close``, awake or asleep.

    The constructor returns while the engines still start; the first call that needs them waits. Rollouts do not
    depend on the number of decoders or the chunk size, up to float noise in their log-probabilities.
    """

    def __init__(
        self,
        config: DecodingConfig,
        model: DecoderModel,
        *,
        seed: int,
        index: CatalogIndex | None = None,
        model_files: Parcel | None = None,
    ) -> None:
        threads = str(num_threads(config))
        # Two engines that each take every core run slower than one.
        variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        actor_class = ray.remote(DecoderActor).options(
            num_cpus=config.cpus_per_decoder,
            num_gpus=config.reserved_gpus,
            max_restarts=_MAX_RESTARTS,
            max_task_retries=_MAX_RESTARTS,
            # Not in the placement group of a sweep's trial, which would hold all that is started there.
            scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=None),
            runtime_env={"env_vars": variables | environment()},
        )
        # Sealed, because Ray warns of objects that a restart needs; this one is held as long as the pool.
        self._model_files = model_files
        files = None if model_files is None else ray.cloudpickle.dumps(model_files)
        self._chunk_size = config.chunk_size
        self._index = (None if index is None else ray.put(index),)  # the decoders of a machine read one copy
        self._actors: list[Any] = [
            actor_class.remote(config, model, seed=seed, model_files=files) for _ in range(config.num_decoders)
        ]
        self._adapter: SentAdapter | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decoding")
        self._closed = threading.Event()

    def __enter__(self) -> DecoderPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def wait_ready(self) -> str:
        """The engine's name and version, once every decoder has started."""
        references = [actor.engine.remote() for actor in self._actors]
        while ray.wait(references, num_returns=len(references), timeout=_WAIT_S)[1]:
            logger.warning("still waiting for the decoders; free in the cluster: %s", ray.available_resources())
        engines: list[str] = _get(references)
        logger.info("decoders: %s", "; ".join(_get([actor.place.remote() for actor in self._actors])))
        return engines[0]

    def load_adapter(self, adapter: AdapterCheckpoint | None) -> None:
        """Decode with this adapter from the next call on, or with the base model alone; waits until all swapped."""
        sent = send(adapter)
        _get([actor.load_adapter.remote(sent) for actor in self._actors])
        self._adapter = sent

    def decode(self, rows: Sequence[PromptRow], **options: Any) -> list[Rollout]:
        """One rollout per row, in order, with the current adapter; the options are those of ``start_decode``."""
        return self.start_decode(rows, **options).result()

    def start_decode(
        self, rows: Sequence[PromptRow], *, beam_width: int, max_new_tokens: int, **delivery: Any
    ) -> PendingDecode:
        """Start to decode with the adapter of this moment; several started are done one after the other.

        ``delivery`` are the fields of ``Delivery``.
        """

        def submit(actor: Any, prompts: list[list[int]], _: range) -> Any:
            return actor.decode.remote(adapter, prompts, beam_width=beam_width, max_new_tokens=max_new_tokens)

        adapter = self._adapter
        return PendingDecode(self._thread.submit(self._decode, list(rows), submit, Delivery(**delivery)))

    def start_search(
        self, rows: Sequence[PromptRow], search: CatalogSearch, *, item_logps: Floats | None = None, **delivery: Any
    ) -> PendingDecode:
        """Start to search the catalogue for the rows, as ``start_decode`` does; a row's place is its sample's seed.

        ``item_logps`` [rows, items of the index] are a second opinion, weighed against ``search.lm_weight``.
        """

        def submit(actor: Any, prompts: list[list[int]], places: range) -> Any:
            opinion = _rows_at(item_logps, places)
            seeds = list(places)
            return actor.search.remote(adapter, prompts, self._index, search=search, seeds=seeds, item_logps=opinion)

        adapter = self._adapter
        return PendingDecode(self._thread.submit(self._decode, list(rows), submit, Delivery(**delivery)))

    def start_rank(
        self,
        rows: Sequence[PromptRow],
        targets: Sequence[str],
        search: CatalogSearch,
        *,
        item_logps: Floats | None = None,
        **delivery: Any,
    ) -> PendingDecode:
        """Start to rank the whole catalogue for the rows: ``search.num_answers``, and where each row's target stands.

        ``item_logps`` as in ``start_search``.
        """

        def submit(actor: Any, prompts: list[list[int]], places: range) -> Any:
            asked, opinion = [targets[place] for place in places], _rows_at(item_logps, places)
            return actor.rank.remote(adapter, prompts, self._index, targets=asked, search=search, item_logps=opinion)

        adapter = self._adapter
        return PendingDecode(self._thread.submit(self._decode, list(rows), submit, Delivery(**delivery)))

    def sleep(self) -> None:
        """Leave the GPUs to the trainers, once everything started is decoded."""
        self._thread.submit(lambda: _get([actor.sleep.remote() for actor in self._actors])).result()

    def wake(self) -> None:
        """Be ready to decode again; a call to a sleeping decoder wakes it too."""
        _get([actor.wake.remote() for actor in self._actors])

    def canary(self, prompt: Sequence[int], response: Sequence[int]) -> list[float]:
        """Each decoder's log-probabilities of a response under the current adapter, in nats, one per way it decodes."""
        scores = [actor.score.remote(self._adapter, list(prompt), list(response)) for actor in self._actors]
        return [logp for logps in _get(scores) for logp in logps]

    def close(self) -> None:
        """Stop the decoders; a decode that is still pending fails."""
        self._closed.set()
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._actors = []

    def _decode(
        self, rows: list[PromptRow], start_chunk: Callable[[Any, list[list[int]], range], Any], delivery: Delivery
    ) -> list[Rollout]:
        progress = DecodeProgress(delivery.label, len(rows), delivery.is_valid)
        size = self._chunk_size
        chunks = [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
        done = {places: kept for places in chunks if (kept := kept_chunk(delivery.chunks, rows, places)) is not None}
        todo = iter([places for places in chunks if places not in done])
        in_flight: dict[Any, tuple[range, Any]] = {}

        def submit(actor: Any) -> None:
            places = next(todo, None)
            if places is not None:
                in_flight[start_chunk(actor, [list(rows[place][1]) for place in places], places)] = (places, actor)

        for kept in done.values():
            progress.advance([rollout.hypotheses for rollout in kept])
        for _ in range(_CHUNKS_PER_DECODER):
            for actor in self._actors:
                submit(actor)
        try:
            while in_flight and not self._closed.is_set():
                for reference in ray.wait(list(in_flight), timeout=1.0)[0]:
                    places, actor = in_flight.pop(reference)
                    (answers,) = _get([reference])
                    rollouts = [
                        Rollout(example_id=rows[place][0], **answer)
                        for place, answer in zip(places, answers, strict=True)
                    ]
                    done[places] = rollouts
                    if delivery.chunks is not None:
                        write_rows(chunk_file(delivery.chunks, places), rollouts)
                        delivery.kept(delivery.chunks)
                    progress.advance([rollout.hypotheses for rollout in rollouts])
                    submit(actor)
        finally:
            progress.close()
            for reference in in_flight:  # only after a failure: what nobody will read need not run
                ray.cancel(reference)
        if self._closed.is_set():
            raise DecodingError("the decoders were closed while rows were still to decode")
        result = [rollout for places in chunks for rollout in done[places]]
        if delivery.then is not None:
            delivery.then(result)
        return result


def _rows_at(values_RI: Floats | None, places: range) -> Floats | None:
    return None if values_RI is None else np.ascontiguousarray(values_RI[places.start : places.stop])


def _get(references: list[Any]) -> list[Any]:
    """What the actors answered. A ValueError stays one, anything else is a DecodingError; both in one line."""
    try:
        return list(ray.get(references))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        message = f"a decoder failed: {_one_line(cause)}"
        raise (ValueError(message) if isinstance(cause, ValueError) else DecodingError(message)) from None
    except ray.exceptions.RayActorError as error:
        message = f"a decoder died and could not be started again: {_one_line(error)}"
        raise DecodingError(message) from None


def _one_line(error: BaseException) -> str:
    """The last line says what happened: Ray puts a remote traceback before it."""
    return next(_lines(str(error)), type(error).__name__)


def _lines(text: str) -> Iterator[str]:
    return (line.strip() for line in reversed(text.splitlines()) if line.strip())
