"""The stages of SPRec on Ray: each turns files of the run directory into files, once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from sprec_ray import __version__
from sprec_ray.artifacts import Stage, read_json, read_rollouts, read_rows, write_json, write_rows
from sprec_ray.cluster.datasets import prepare_data
from sprec_ray.cluster.decoding import DecoderPool, DecodingError, PendingDecode
from sprec_ray.cluster.evaluation import Evaluator
from sprec_ray.cluster.training import TextSettings, TrainingSession, TrainTask
from sprec_ray.config import ConfigError, PhaseConfig, PreferenceConfig, RunConfig, config_to_dict
from sprec_ray.data.catalog import Catalog
from sprec_ray.data.prompts import parse_response, render_prompt, render_response
from sprec_ray.data.sequences import derive_rng
from sprec_ray.decoding.decoder import DecoderModel
from sprec_ray.selfplay.negatives import mix_random, random_groups, self_play_groups
from sprec_ray.training.phase import Phase
from sprec_ray.types import AdapterCheckpoint, EvalResult, Example, PreferenceGroup, Rollout

logger = logging.getLogger(__name__)


class Clock:
    """The timeline of a run: every span that is over is a line of a file, so that a crash loses none."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()

    def add(self, name: str, kind: str, start: float, duration: float) -> None:
        """Keep a span; ``start`` and ``duration`` are seconds, ``start`` since the epoch."""
        line = json.dumps({"name": name, "kind": kind, "start": start, "duration": duration})
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    @contextmanager
    def span(self, name: str, kind: str) -> Iterator[None]:
        """Time the block."""
        start = time.time()
        try:
            yield
        finally:
            self.add(name, kind, start, time.time() - start)


class RayStages:
    """The ``Stages`` of ``selfplay.loop``. Engines are launched when a stage first needs them, and live until ``close``."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.clock = Clock(folder / "timeline.jsonl")
        self.engine = ""
        self._evaluations = ThreadPoolExecutor(max_workers=1, thread_name_prefix="evaluation")
        self._decoding_lock = threading.Lock()
        self._canaries: dict[int, dict[str, Any]] = {}
        self._text = TextSettings(
            template=config.data.template,
            noun=config.data.noun,
            max_prompt_tokens=config.model.max_prompt_tokens,
            max_response_tokens=config.model.max_response_tokens,
        )

    # What every stage needs -------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the examples and the language model: what the loop starts from. Raises ConfigError for bad settings."""
        stage = Stage(self.folder / "data")
        if not stage.is_finished:
            with self.clock.span("data", "load"), self._stage(stage, "data") as summary:
                summary.update(counts=prepare_data(self.config.data, seed=self.config.seed, out=stage.path))
        most = len(self.catalog) - 1
        if self.config.selfplay.num_negatives > most:
            raise ConfigError(
                f"selfplay.num_negatives={self.config.selfplay.num_negatives} exceeds the {most} titles the catalogue "
                "holds besides the target; lower it"
            )

    @cached_property
    def catalog(self) -> Catalog:
        """The distinct titles of the run's data."""
        return Catalog.read(self.folder / "data" / "catalog.json")

    @cached_property
    def train_examples(self) -> list[Example]:
        """All training examples."""
        return read_rows(self.folder / "data" / "train.jsonl", Example)

    @cached_property
    def test_examples(self) -> list[Example]:
        """All test examples."""
        return read_rows(self.folder / "data" / "test.jsonl", Example)

    @cached_property
    def _session(self) -> TrainingSession:
        return TrainingSession(self.config.training, storage=self.folder / "ray-train")

    @cached_property
    def _pool(self) -> DecoderPool:
        model = self.config.model
        start = time.time()
        pool = DecoderPool(
            self.config.decoding,
            DecoderModel(
                path=self.model_path,
                dtype=model.dtype,
                max_model_len=model.max_prompt_tokens + model.max_response_tokens,
                max_beam_width=2 * self.config.selfplay.num_negatives,
                lora_rank=model.lora.rank,
                trust_remote_code=model.trust_remote_code,
            ),
            seed=self.config.seed,
        )
        self.engine = pool.wait_ready()
        self.clock.add("decoders", "launch", start, time.time() - start)
        return pool

    @cached_property
    def _encoder(self) -> Any:
        from transformers import AutoTokenizer

        return self._text.encoder(AutoTokenizer.from_pretrained(self.model_path))

    @cached_property
    def model_path(self) -> str:
        """The folder or hub name of the language model; the small Llama is pre-trained here and cached across runs."""
        if self.config.model.name_or_path != "scratch":
            return self.config.model.name_or_path
        stage = Stage(self.folder.parent / "cache" / f"model-{self._scratch_key()}")
        if not stage.is_finished:
            with self._stage(stage, "pre-training") as summary:
                summary.update(self._pretrain(stage))
        return str(stage.path)

    def _scratch_key(self) -> str:
        """What the pre-trained model depends on, so that runs share it exactly when they may."""
        content = hashlib.sha256((self.folder / "data" / "train.jsonl").read_bytes())
        content.update((self.folder / "data" / "catalog.json").read_bytes())
        settings = {**config_to_dict(self.config)["model"]["scratch"], **dataclasses.asdict(self._text)}
        content.update(json.dumps([settings, self.config.training.num_workers, __version__], sort_keys=True).encode())
        return content.hexdigest()[:16]

    def _pretrain(self, stage: Stage) -> dict[str, Any]:
        from sprec_ray.training.scratch import write_untrained_model

        scratch, examples = self.config.model.scratch, self.train_examples
        prompts = (
            render_prompt(example.history, template=self._text.template, noun=self._text.noun)
            + render_response(example.target)
            for example in examples
        )
        texts = [*map(render_response, self.catalog.titles), *prompts]
        model = self.config.model
        untrained = stage.path / "untrained"
        write_untrained_model(
            untrained, texts, scratch, max_positions=model.max_prompt_tokens + model.max_response_tokens
        )
        num_steps = scratch.num_epochs * -(-len(examples) // scratch.global_batch_size)
        phase = Phase(
            model_path=str(untrained),
            dtype="float32",
            out=str(stage.path),
            seed=scratch.seed,
            training=self.config.training,
            optimization=PhaseConfig(
                learning_rate=scratch.learning_rate,
                num_epochs=scratch.num_epochs,
                global_batch_size=scratch.global_batch_size,
                micro_batch_size=scratch.micro_batch_size,
                num_warmup_steps=num_steps // 10,
            ),
        )
        rows = [_as_group(example) for example in examples]
        return self._train(stage, phase, rows, "pre-training", whole_text=True)

    @contextmanager
    def _stage(self, stage: Stage, name: str) -> Iterator[dict[str, Any]]:
        """Fill a stage's folder inside the block and mark it as finished; yields the summary to fill."""
        stage.start()
        logger.info("%s", name)
        summary: dict[str, Any] = {}
        yield summary
        stage.finish(summary)

    # The loop's stages ------------------------------------------------------------------------------------------

    def first_sft(self) -> AdapterCheckpoint:
        """A_0: SFT of a fresh adapter on all training examples."""
        return self._sft(Stage(self.folder / "sft"), None, self.train_examples, version=1, name="sft")

    def sample(self, iteration: int) -> list[Example]:
        """This iteration's examples, drawn without replacement with a seed of their own."""
        examples = self.train_examples
        count = min(self.config.selfplay.num_examples, len(examples))
        rng = derive_rng(self.config.seed, f"self-play/{iteration}")
        return [examples[index] for index in sorted(rng.permutation(len(examples))[:count].tolist())]

    def start_decoding(
        self, iteration: int, policy: AdapterCheckpoint, examples: Sequence[Example]
    ) -> Callable[[], dict[str, Rollout]] | None:
        """Begin to decode 2N beams for each example; None when the iteration's negatives are random."""
        if self.config.selfplay.negatives == "random" or Stage(self._iteration(iteration) / "groups").is_finished:
            return None
        stage = Stage(self._iteration(iteration) / "rollouts")
        if stage.is_finished:
            return lambda: _by_example(read_rollouts(stage.path / "rollouts.jsonl"))
        start = time.time()
        width = 2 * self.config.selfplay.num_negatives
        pending = self.decode(policy, examples, beam_width=width, label=f"iteration {iteration}: decoding")

        def finish() -> dict[str, Rollout]:
            rollouts = pending.result()
            self.clock.add(f"iteration {iteration}: negatives", "decode", start, time.time() - start)
            with self._stage(stage, f"iteration {iteration}: negatives decoded"):
                write_rows(stage.path / "rollouts.jsonl", rollouts)
            return _by_example(rollouts)

        return finish

    def train_sft(self, iteration: int, init: AdapterCheckpoint, examples: Sequence[Example]) -> AdapterCheckpoint:
        """Continue ``init`` on the targets of the examples."""
        stage = Stage(self._iteration(iteration) / "sft")
        return self._sft(stage, init, examples, version=2 * iteration + 2, name=f"iteration {iteration}: sft")

    def pair(
        self, iteration: int, examples: Sequence[Example], decoding: Callable[[], dict[str, Rollout]] | None
    ) -> list[PreferenceGroup]:
        """The preference groups of the examples, with what was dropped counted."""
        stage = Stage(self._iteration(iteration) / "groups")
        if stage.is_finished:
            return read_rows(stage.path / "groups.jsonl", PreferenceGroup)
        selfplay, titles = self.config.selfplay, self.catalog.titles
        rng = derive_rng(self.config.seed, f"negatives/{iteration}")
        counts: dict[str, int] = {}
        rollouts = decoding() if decoding is not None else {}
        if selfplay.negatives == "random":
            groups = random_groups(examples, num_negatives=selfplay.num_negatives, titles=titles, rng=rng)
        else:
            groups, counts = self_play_groups(
                examples,
                rollouts,
                num_negatives=selfplay.num_negatives,
                parse=parse_response,
                titles=frozenset(titles),
            )
            groups = mix_random(groups, ratio=selfplay.random_ratio, titles=titles, rng=rng)
        if not groups:
            raise RuntimeError(
                f"iteration {iteration}: none of the {counts.get('beams', 0)} beams was a usable negative "
                f"({counts.get('invalid', 0)} invalid); the policy has collapsed: lower preference.learning_rate"
            )
        with self._stage(stage, f"iteration {iteration}: {len(groups)} preference groups") as summary:
            write_rows(stage.path / "groups.jsonl", groups)
            summary.update(counts={"examples": len(examples), "groups": len(groups), **counts})
        return groups

    def train_preferences(
        self,
        iteration: int,
        init: AdapterCheckpoint,
        reference: AdapterCheckpoint | None,
        groups: Sequence[PreferenceGroup],
    ) -> AdapterCheckpoint:
        """Continue ``init`` on the groups, measured against ``reference``."""
        stage = Stage(self._iteration(iteration) / "preference")
        name, version = f"iteration {iteration}: {self.config.preference.loss}", 2 * iteration + 3
        if not stage.is_finished:
            phase = self._phase(stage, self.config.preference, init, reference)
            with self._stage(stage, name) as summary:
                summary.update(self._train(stage, phase, groups, name))
        return self._adapter(stage, version)

    def evaluate(self, label: str, policy: AdapterCheckpoint | None) -> Callable[[], EvalResult]:
        """Begin to measure a policy on the test rows, beside what comes next; returns what waits for the result."""
        stage = Stage(self.folder / "evaluations" / label)
        if stage.is_finished:
            return lambda: EvalResult(**stage.summary["result"])
        # The engines are made here, not in the thread, so that they are made once.
        _ = self._pool, self._session
        return self._evaluations.submit(self._evaluate, stage, label, policy).result

    # How they are done ------------------------------------------------------------------------------------------

    def _iteration(self, iteration: int) -> Path:
        return self.folder / f"iteration-{iteration}"

    def _sft(
        self, stage: Stage, init: AdapterCheckpoint | None, examples: Sequence[Example], *, version: int, name: str
    ) -> AdapterCheckpoint:
        if not stage.is_finished:
            phase = self._phase(stage, self.config.sft if init is None else self.config.selfplay_sft, init, None)
            with self._stage(stage, name) as summary:
                summary.update(self._train(stage, phase, [_as_group(example) for example in examples], name))
        return self._adapter(stage, version)

    def _phase(
        self,
        stage: Stage,
        optimization: PhaseConfig | PreferenceConfig,
        init: AdapterCheckpoint | None,
        reference: AdapterCheckpoint | None,
    ) -> Phase:
        return Phase(
            model_path=self.model_path,
            dtype=self.config.model.dtype,
            out=str(stage.path),
            seed=int(derive_rng(self.config.seed, str(stage.path.relative_to(self.folder))).integers(2**31)),
            training=self.config.training,
            optimization=optimization,
            lora=self.config.model.lora,
            init_adapter=init.path if init else None,
            reference_adapter=reference.path if reference else None,
            trust_remote_code=self.config.model.trust_remote_code,
        )

    def _train(
        self, stage: Stage, phase: Phase, groups: Sequence[PreferenceGroup], name: str, *, whole_text: bool = False
    ) -> dict[str, Any]:
        write_rows(stage.path / "rows.jsonl", groups)
        task = TrainTask(phase=phase, rows_path=str(stage.path / "rows.jsonl"), text=self._text, whole_text=whole_text)
        start = time.time()
        summary = self._session.run(task, label=name)
        launched = self._session.take_launch()
        if launched is not None:
            self.clock.add("training workers", "launch", *launched)
        elapsed = time.time() - max(start, sum(launched) if launched else start)
        load_s = max(0.0, elapsed - summary["compute_s"])
        self.clock.add(name, "load", time.time() - elapsed, load_s)
        self.clock.add(name, "compute", time.time() - summary["compute_s"], summary["compute_s"])
        write_json(stage.path / "steps.json", summary.pop("steps"))
        return summary

    def _adapter(self, stage: Stage, version: int) -> AdapterCheckpoint:
        self._canaries[version] = stage.summary["canary"]
        return AdapterCheckpoint(path=str(stage.path), version=version)

    def decode(
        self, policy: AdapterCheckpoint | None, examples: Sequence[Example], *, beam_width: int, label: str
    ) -> PendingDecode:
        """Begin to decode the examples' prompts under a policy, once the decoders prove that they hold it."""
        rows = [(example.example_id, self._encoder.prompt(example.history)) for example in examples]
        with self._decoding_lock:
            self._pool.load_adapter(policy)
            if policy is not None:
                self._check_canary(policy)
            return self._pool.start_decode(
                rows, beam_width=beam_width, max_new_tokens=self.config.model.max_response_tokens, label=label
            )

    def _check_canary(self, policy: AdapterCheckpoint) -> None:
        """An adapter that is silently not applied is a known failure of engines: compare one log-probability."""
        canary = self._canaries[policy.version]
        for logp in self._pool.canary(canary["prompt"], canary["response"]):
            difference = abs(logp - canary["logp"]) / len(canary["response"])
            if not difference <= self.config.decoding.canary_tolerance:
                raise DecodingError(
                    f"a decoder gives a response {logp:.3f} nats where the trainer gave {canary['logp']:.3f} with the "
                    f"same adapter {policy.path}: it does not hold this adapter. If dtypes differ, raise "
                    "decoding.canary_tolerance"
                )

    def _evaluate(self, stage: Stage, label: str, policy: AdapterCheckpoint | None) -> EvalResult:
        start = time.time()
        rollouts = self.decode(policy, self.test_examples, beam_width=1, label=f"{label}: test rows").result()
        self.clock.add(f"{label}: test rows", "decode", start, time.time() - start)
        with self.clock.span(f"{label}: grounding", "evaluate"), self._stage(stage, f"{label}: evaluation") as summary:
            result = self.evaluator.evaluate(label, policy, rollouts, stage)
            summary.update(result=dataclasses.asdict(result))
        return result

    @cached_property
    def evaluator(self) -> Evaluator:
        """What every policy is measured with."""
        return Evaluator(
            self.config,
            catalog=self.catalog,
            train=self.train_examples,
            test=self.test_examples,
            model_path=self.model_path,
            embed=lambda task, label: self._session.run(task, label=label),
        )

    def counts(self) -> dict[str, int]:
        """The counts of the prepared data."""
        counts: dict[str, int] = read_json(self.folder / "data" / "counts.json")
        return counts

    def close(self) -> None:
        """Stop the engines that were started."""
        self._evaluations.shutdown(wait=False, cancel_futures=True)
        for name in ("_pool", "_session"):
            if name in self.__dict__:
                self.__dict__[name].close()


def _as_group(example: Example) -> PreferenceGroup:
    return PreferenceGroup(example_id=example.example_id, history=example.history, chosen=example.target, rejected=())


def _by_example(rollouts: Sequence[Rollout]) -> dict[str, Rollout]:
    return {rollout.example_id: rollout for rollout in rollouts}
