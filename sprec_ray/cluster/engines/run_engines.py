"""The engines of a run: the training group and the decoders, launched when first needed, alive until closed."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sprec_ray.cluster.engines.catalog_index import catalog_index
from sprec_ray.cluster.engines.decoder_pool import DecoderPool, DecodingError
from sprec_ray.cluster.engines.delivery import PendingDecode
from sprec_ray.cluster.engines.kept import KeptEngines
from sprec_ray.cluster.engines.parcel import ADAPTER, Parcel, pack
from sprec_ray.cluster.engines.search_settings import decoder_model, max_beam_width
from sprec_ray.cluster.engines.tasks import ReadTask, TrainRow, TrainTask
from sprec_ray.cluster.engines.worker_group import TrainingSession
from sprec_ray.config.run import RunConfig
from sprec_ray.data.tokens import TextSettings
from sprec_ray.decoding.arrays import Floats
from sprec_ray.decoding.catalog.request import CatalogSearch
from sprec_ray.storage.artifacts import Stage, write_bytes, write_json, write_rows
from sprec_ray.storage.timeline import Clock
from sprec_ray.training.batches import warn_of_short_phase
from sprec_ray.training.phase import Phase
from sprec_ray.types import AdapterCheckpoint, Example, JudgementGroup

logger = logging.getLogger(__name__)


class Engines:
    """Trains, decodes and embeds for the stages, and times what it does.

    With ``kept`` both sides are taken from there, and left there by ``close``, where they may live side by side.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        clock: Clock,
        titles: Callable[[], Sequence[str]] = tuple,
        push: Callable[[Path], None] = lambda partial: None,
        *,
        kept: KeptEngines | None = None,
    ) -> None:
        self._config, self._folder, self._clock, self._titles = config, folder, clock, titles
        self._push = push
        self._kept = None if config.decoding.placement == "sequential" else kept
        self._lock = threading.RLock()
        self._canaries: dict[str, dict[str, Any]] = {}
        self._pool: DecoderPool | None = None
        self._pool_started_at: float | None = None
        self._encoder: Any = None
        self._room: int | None = None
        self._searchable: list[int] = []
        """Places in the catalogue of the titles that a search can find."""
        self._model: Parcel | None = None
        self.decoder_name = ""
        """Name and version of the decoding engine, once it has started."""
        self.text = TextSettings(
            template=config.data.template,
            noun=config.data.noun,
            max_prompt_tokens=config.model.max_prompt_tokens,
            max_response_tokens=config.model.max_response_tokens,
        )

    @property
    def overlaps(self) -> bool:
        """Whether decoders and training workers may compute at the same time."""
        return self._config.decoding.placement == "split"

    @property
    def are_running(self) -> bool:
        """Whether the training group or decoders are launched, and hold what they reserve."""
        return self._pool is not None or "session" in self.__dict__

    @cached_property
    def session(self) -> TrainingSession:
        """The training group, launched at the first use."""
        launch = partial(TrainingSession, self._config.training, storage=self._folder / "ray-train")
        return launch() if self._kept is None else self._kept.session(self._config.training, launch)

    def start(self, model_path: str) -> None:
        """Launch what is not running yet, training group and decoders side by side.

        Where they share GPUs by fractions the decoders go first: Ray fills a GPU before it takes the next, and a
        decoder's share above one half keeps two of them, or two workers after them, off one GPU.
        One after the other (``sequential``) each is launched when its turn comes.
        """
        if self._config.decoding.placement == "sequential" or self._config.data.task == "pairs":
            return  # pairs are scored by the training workers: nothing is decoded
        with self._lock:  # stages and the evaluation beside them both come here
            if self._pool is None:
                if not self._config.training.gpus_per_worker:
                    _ = self.session
                self._start_decoders(model_path)
                if self._config.training.gpus_per_worker:
                    self._wait_for_decoders()
            _ = self.session

    def _start_decoders(self, model_path: str) -> None:
        from transformers import AutoTokenizer

        model = self._config.model
        start = time.time()
        self._encoder = self.text.encoder(
            AutoTokenizer.from_pretrained(model_path, trust_remote_code=model.trust_remote_code)
        )
        max_model_len = model.max_prompt_tokens + model.max_response_tokens
        self._room, index = None, None
        if self._config.decoding.search != "free":
            index = catalog_index(
                self._encoder,
                self._titles(),
                folder=self._folder.parent / "cache" / "catalogs",
                max_tokens=max_model_len // 2,
            )
            self._room = index.room(model.max_prompt_tokens, max_model_len)
            self._searchable = index.places_in(self._titles())
        decoder = decoder_model(self._config, model_path, max_beam_width=max_beam_width(self._config))
        files = next(iter(self._model_parcels(model_path)), None)
        launch = partial(
            DecoderPool, self._config.decoding, decoder, seed=self._config.seed, index=index, model_files=files
        )
        settings = (self._config.decoding, decoder, self._config.seed, index and index.titles)
        self._pool = launch() if self._kept is None else self._kept.pool(settings, launch)
        self._pool_started_at = start

    def _wait_for_decoders(self) -> None:
        """Return once they decode. Where it may, training goes on meanwhile: the first phase needs no decoder."""
        if self._pool is not None and self._pool_started_at is not None:
            self.decoder_name = self._pool.wait_ready()
            self._clock.add("decoders", "launch", self._pool_started_at, time.time() - self._pool_started_at)
            self._pool_started_at = None

    def _trainers_turn(self) -> TrainingSession:
        """The training group, with the decoders out of its way. Where they must be, nothing runs beside this call."""
        placement = self._config.decoding.placement
        if placement == "colocate" and self._pool is not None:
            self._pool.sleep()
        elif placement == "sequential":
            self._close_decoders()
        return self.session

    def _decoders_turn(self, model_path: str) -> DecoderPool:
        """The decoders, with the training group out of their way."""
        placement = self._config.decoding.placement
        if placement != "sequential":
            self.start(model_path)
        elif self._pool is None:
            self._close_session()
            self._start_decoders(model_path)
        self._wait_for_decoders()
        assert self._pool is not None
        if placement == "colocate":
            self._pool.wake()
        return self._pool

    def train(
        self, stage: Stage, phase: Phase, groups: Sequence[TrainRow], name: str, *, whole_text: bool = False
    ) -> dict[str, Any]:
        """Run a training phase into the stage's folder, its steps' metrics in steps.json; returns the summary."""
        if self._config.training.gpus_per_worker and not whole_text:
            self.start(phase.model_path)
        rows, state = stage.path / "rows.jsonl", stage.partial / "state.safetensors"
        write_rows(rows, groups)
        if phase.cache is not None:
            Path(phase.cache).mkdir(parents=True, exist_ok=True)
        warn_of_short_phase(phase.optimization, len(groups), name)
        session = self._trainers_turn()
        task = TrainTask(
            phase=phase,
            rows_path=str(rows),
            text=self.text,
            judgements=isinstance(next(iter(groups), None), JudgementGroup),
            whole_text=whole_text,
            parcels=(pack(rows), *self._parcels(phase.model_path, phase.init_adapter, phase.reference_adapter)),
            kept_state=state.read_bytes() if state.is_file() else None,
        )

        def keep_state(content: bytes) -> None:
            write_bytes(state, content)
            self._push(stage.partial)

        summary = session.run(task, label=name, keep_state=keep_state)
        trained = time.time() - summary["compute_s"]
        launched = session.take_launch()
        if launched is not None:
            self._clock.add("training workers", "launch", *launched)
            logger.info("training workers: %s", "; ".join(session.places()))
        self._clock.add(name, "load", trained - summary["load_s"], summary["load_s"])
        self._clock.add(name, "compute", trained, summary["compute_s"])
        if summary["num_truncated_prompts"] > 0.1 * len(groups):
            logger.warning(
                "%s: %d of %d prompts lost their oldest titles; raise model.max_prompt_tokens",
                name,
                summary["num_truncated_prompts"],
                len(groups),
            )
        write_json(stage.path / "steps.json", summary.pop("steps"))
        return summary

    def read(self, task: ReadTask, label: str) -> dict[str, Any]:
        """Embed texts, or score answers, on the training workers."""
        task = dataclasses.replace(task, parcels=self._parcels(task.policy.model_path, task.policy.adapter))
        return self._trainers_turn().run(task, label=label)

    def _parcels(self, model_path: str, *adapters: str | None) -> tuple[Parcel, ...]:
        """What other machines lack: adapters and the small Llama. A given model is on every machine or on the hub."""
        parcels = [pack(adapter, ADAPTER) for adapter in dict.fromkeys(adapters) if adapter is not None]
        return (*self._model_parcels(model_path), *parcels)

    def _model_parcels(self, model_path: str) -> tuple[Parcel, ...]:
        if self._config.model.name_or_path != "scratch":
            return ()
        if self._model is None or self._model.path != model_path:
            self._model = pack(model_path)
        return (self._model,)

    def remember_canary(self, policy: AdapterCheckpoint, canary: dict[str, Any]) -> None:
        """Keep a response with the trainer's log-probability of it, to check decoders against."""
        self._canaries[policy.path] = canary

    def decode(
        self,
        policy: AdapterCheckpoint | None,
        examples: Sequence[Example],
        model_path: str,
        *,
        search: CatalogSearch | int,
        rank: bool = False,
        item_logps: Floats | None = None,
        **delivery: Any,
    ) -> PendingDecode:
        """Begin to decode the examples' prompts under a policy, once the decoders prove that they hold it.

        ``search`` is what to look for in the catalogue, or how many free beams to decode; with ``rank``
        all of the catalogue is ranked instead, and as many answers are kept. ``item_logps`` [examples, titles] are a
        second opinion on the catalogue. Where decoding must not overlap training it is done on return. ``delivery`` are
        the fields of ``Delivery``. Raises DecodingError when a decoder's log-probability of the canary differs from the
        trainer's.
        """
        delivery["kept"] = self._push
        with self._lock:
            pool = self._decoders_turn(model_path)
            prompt = partial(self._encoder.prompt, room=self._room)
            rows = [(row.example_id, prompt(row.history, candidates=row.candidates)) for row in examples]
            with self._clock.span(f"{delivery.get('label', 'decoding')}: swap", "load"):
                pool.load_adapter(policy)
                if policy is not None:
                    self._check_canary(pool, policy)
            if isinstance(search, CatalogSearch):
                item_logps = None if item_logps is None else item_logps[:, self._searchable]
                if rank:
                    targets = [example.target for example in examples]
                    pending = pool.start_rank(rows, targets, search, item_logps=item_logps, **delivery)
                else:
                    pending = pool.start_search(rows, search, item_logps=item_logps, **delivery)
            else:
                new = self._config.model.max_response_tokens
                pending = pool.start_decode(rows, beam_width=search, max_new_tokens=new, **delivery)
        if not self.overlaps:
            pending.result()
        return pending

    def _check_canary(self, pool: DecoderPool, policy: AdapterCheckpoint) -> None:
        """An adapter that is silently not applied is a known failure of engines: compare one log-probability."""
        canary = self._canaries[policy.path]
        for logp in pool.canary(canary["prompt"], canary["response"]):
            difference = abs(logp - canary["logp"]) / len(canary["response"])
            if not difference <= self._config.decoding.canary_tolerance:
                raise DecodingError(
                    f"a decoder gives a response {logp:.3f} nats where the trainer gave {canary['logp']:.3f} with the "
                    f"same adapter {policy.path}: it does not hold this adapter. If dtypes differ, raise "
                    "decoding.canary_tolerance"
                )

    def close(self) -> None:
        """Stop what was started, or leave it to the next run, decoders asleep where they share GPUs."""
        if self._kept is None:
            self._close_decoders()
            self._close_session()
        elif self._pool is not None and self._config.decoding.placement == "colocate":
            self._pool.sleep()

    def _close_decoders(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _close_session(self) -> None:
        if "session" in self.__dict__:
            self.session.close()
            del self.session
