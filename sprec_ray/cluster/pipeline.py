"""The stages of SPRec on Ray: each turns files of the run directory into files, once."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sprec_ray.artifacts import Stage, as_eval_result, read_rollouts, read_rows, write_rows
from sprec_ray.cluster.datasets import prepare_data
from sprec_ray.cluster.decoding import PendingDecode
from sprec_ray.cluster.engines import Engines
from sprec_ray.cluster.evaluation import Evaluator, num_answer_tokens
from sprec_ray.cluster.kept import KeptEngines
from sprec_ray.cluster.language_model import pretrained_model, sft_groups
from sprec_ray.cluster.results import evaluations_folder
from sprec_ray.cluster.searches import check_number_of_titles, evaluation_search, negatives_search
from sprec_ray.cluster.sharing import SharedStages
from sprec_ray.cluster.timeline import Clock
from sprec_ray.config import RunConfig
from sprec_ray.config_methods import PhaseConfig, PreferenceConfig
from sprec_ray.data.catalog import Catalog
from sprec_ray.data.prompts import parse_response
from sprec_ray.data.sequences import derive_rng
from sprec_ray.selfplay.negatives import mix_random, random_groups, self_play_groups
from sprec_ray.storage.mirror import open_mirror
from sprec_ray.training.phase import Phase
from sprec_ray.types import AdapterCheckpoint, EvalResult, Example, PreferenceGroup, Rollout

logger = logging.getLogger(__name__)

Split = Literal["test", "valid"]


class RayStages:
    """The ``Stages`` of ``selfplay.loop``, as folders of the run directory."""

    def __init__(
        self, config: RunConfig, folder: Path, *, split: Split = "test", kept: KeptEngines | None = None
    ) -> None:
        self.config, self.folder, self.split = config, folder, split
        self.clock, self.mirror = Clock(folder), open_mirror(config.output_dir)
        self.engines = Engines(config, folder, self.clock, lambda: self.catalog.titles, self.mirror.push, kept=kept)
        self._shared = SharedStages(config, folder)
        self._evaluations = ThreadPoolExecutor(max_workers=1, thread_name_prefix="evaluation")
        self._pending: list[Future[EvalResult]] = []

    def prepare(self) -> None:
        """Make the examples that the loop starts from. Raises ConfigError for settings that they cannot serve."""
        stage = Stage(self.folder / "data")
        if not self._is_done(stage):
            with self.clock.span("data", "load"), self._stage(stage, "data") as summary:
                summary.update(counts=prepare_data(self.config.data, out=stage.path))
        check_number_of_titles(self.config, len(self.catalog))

    @cached_property
    def catalog(self) -> Catalog:
        """The distinct titles of the run's data."""
        return Catalog.read(self.folder / "data" / "catalog.json")

    @cached_property
    def train_examples(self) -> list[Example]:
        """All training examples."""
        return read_rows(self.folder / "data" / "train.jsonl", Example)

    @cached_property
    def measured_examples(self) -> list[Example]:
        """The examples that policies are measured on."""
        return read_rows(self.folder / "data" / f"{self.split}.jsonl", Example)

    @property
    def evaluations(self) -> Path:
        """The folder of the evaluations on the split."""
        return self.folder / evaluations_folder(self.split)

    @cached_property
    def model_path(self) -> str:
        """The folder or hub name of the language model."""
        if self.config.model.name_or_path != "scratch":
            given = Path(self.config.model.name_or_path).expanduser()
            return str(given.resolve()) if given.is_dir() else self.config.model.name_or_path
        return pretrained_model(self.config, self.mirror, self.engines, train=self.train_examples, catalog=self.catalog)

    def _is_done(self, stage: Stage) -> bool:
        """Whether a stage is on disk, be it from another run that shares its stages."""
        return stage.is_finished or self._shared.adopt(stage, may_wait=not self.engines.are_running)

    @contextmanager
    def _stage(self, stage: Stage, name: str) -> Iterator[dict[str, Any]]:
        """Fill a stage's folder inside the block and mark it as finished; yields the summary to fill."""
        stage.start()
        logger.info("%s", name)
        summary: dict[str, Any] = {}
        yield summary
        stage.finish(summary)
        self._shared.publish(stage)
        self.mirror.push(self.folder)

    def first_sft(self) -> AdapterCheckpoint:
        """A_0: SFT of a fresh adapter on all training examples."""
        return self._sft(Stage(self.folder / "sft"), None, self.train_examples, version=1, name="sft")

    def sample(self, iteration: int) -> list[Example]:
        """This iteration's examples, drawn without replacement with a seed of their own."""
        examples = self.train_examples
        asked = self.config.selfplay.num_examples
        count = len(examples) if asked == "all" else min(asked, len(examples))
        rng = derive_rng(self.config.seed, f"self-play/{iteration}")
        return [examples[index] for index in sorted(rng.permutation(len(examples))[:count].tolist())]

    def start_decoding(
        self, iteration: int, policy: AdapterCheckpoint, examples: Sequence[Example]
    ) -> Callable[[], dict[str, Rollout]] | None:
        """Begin to decode answers to the examples; None when the negatives are random."""
        if self.config.selfplay.negatives == "random" or self._is_done(Stage(self._iteration(iteration) / "groups")):
            return None
        stage = Stage(self._iteration(iteration) / "rollouts")
        file = stage.path / "rollouts.jsonl"
        if self._is_done(stage):
            return lambda: _by_example(read_rollouts(file))
        start = time.time()
        stage.start()

        def finish(rollouts: list[Rollout]) -> None:
            """Called by the decoding thread, so that nothing is lost when what runs beside it fails."""
            write_rows(file, rollouts)
            stage.finish({"num_answer_tokens": num_answer_tokens(rollouts)})
            self._shared.publish(stage)
            self.clock.add(f"iteration {iteration}: negatives", "decode", start, time.time() - start)
            self.mirror.push(self.folder)
            logger.info("iteration %d: negatives decoded", iteration)

        search, label = negatives_search(self.config, iteration), f"iteration {iteration}: decoding"
        pending = self._decode(policy, examples, stage, search=search, label=label, then=finish)
        return lambda: _by_example(pending.result())

    def train_sft(self, iteration: int, init: AdapterCheckpoint, examples: Sequence[Example]) -> AdapterCheckpoint:
        """Continue ``init`` on the targets of the examples."""
        stage = Stage(self._iteration(iteration) / "sft")
        return self._sft(stage, init, examples, version=2 * iteration + 2, name=f"iteration {iteration}: sft")

    def pair(
        self, iteration: int, examples: Sequence[Example], decoding: Callable[[], dict[str, Rollout]] | None
    ) -> list[PreferenceGroup]:
        """The preference groups of the examples, with what was dropped counted."""
        stage = Stage(self._iteration(iteration) / "groups")
        if self._is_done(stage):
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
                exclude_history=selfplay.exclude_history,
            )
            counts["inexact"] = sum(bool(rollout.gap) for rollout in rollouts.values())
            groups = mix_random(groups, ratio=selfplay.random_ratio, titles=titles, rng=rng)
        if counts.get("top_equal_to_target", 0) > 0.5 * len(examples):
            logger.warning("iteration %d: more than half of the policy's first answers are the targets", iteration)
        if not groups:
            raise ValueError(
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
        name = f"iteration {iteration}: {self.config.preference.loss}"
        if not self._is_done(stage):
            phase = self._phase(stage, self.config.preference, init, reference)
            with self._stage(stage, name) as summary:
                summary.update(self.engines.train(stage, phase, groups, name))
        return self._adapter(stage, 2 * iteration + 3)

    def evaluate(self, label: str, policy: AdapterCheckpoint | None) -> Callable[[], EvalResult]:
        """Begin to measure a policy, beside what comes next where that may be; returns what waits for the result."""
        stage = Stage(self.evaluations / label)
        if self._is_done(stage):
            return lambda: as_eval_result(stage.summary["result"])
        self.engines.start(self.model_path)  # here, not in the thread, so that it is done once
        for earlier in self._pending:
            if earlier.done():
                earlier.result()  # raises what failed, before more is trained on it
        self._pending.append(self._evaluations.submit(self._evaluate, stage, label, policy))
        if not self.engines.overlaps:
            self._pending[-1].result()
        return self._pending[-1].result

    def _iteration(self, iteration: int) -> Path:
        return self.folder / f"iteration-{iteration}"

    def _sft(
        self, stage: Stage, init: AdapterCheckpoint | None, examples: Sequence[Example], *, version: int, name: str
    ) -> AdapterCheckpoint:
        if not self._is_done(stage):
            phase = self._phase(stage, self.config.sft if init is None else self.config.selfplay_sft, init, None)
            with self._stage(stage, name) as summary:
                summary.update(self.engines.train(stage, phase, sft_groups(examples), name))
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
            quantization=self.config.model.quantization,
            cache=str(self.folder.parent / "cache" / "references"),
        )

    def _adapter(self, stage: Stage, version: int) -> AdapterCheckpoint:
        adapter = AdapterCheckpoint(path=str(stage.path), version=version)
        self.engines.remember_canary(adapter, stage.summary["canary"])
        return adapter

    def _decode(
        self, policy: AdapterCheckpoint | None, examples: Sequence[Example], stage: Stage, **options: Any
    ) -> PendingDecode:
        def is_valid(text: str) -> bool:
            return parse_response(text) in self.catalog

        options["chunks"] = stage.partial / "chunks"
        return self.engines.decode(policy, examples, self.model_path, is_valid=is_valid, **options)

    def _evaluate(self, stage: Stage, label: str, policy: AdapterCheckpoint | None) -> EvalResult:
        start = time.time()
        name = f"{label}: {self.split} rows"
        search, rank = evaluation_search(self.config), self.config.evaluation.grounding == "ranking"
        rollouts = self._decode(policy, self.measured_examples, stage, search=search, label=name, rank=rank).result()
        self.clock.add(name, "decode", start, time.time() - start)
        start = time.time()
        with self._stage(stage, f"{label}: evaluation") as summary:
            result = self.evaluator.evaluate(label, policy, rollouts, stage)
            summary.update(result=dataclasses.asdict(result), engine=self.engines.decoder_name)
        busy_s = time.time() - start - self.evaluator.waited_s
        self.clock.add(f"{label}: grounding", "evaluate", time.time() - busy_s, busy_s)
        if policy is not None and result.metrics["valid"] < 0.9:
            logger.warning("%s: only %.1f %% of the answers are titles", label, 100 * result.metrics["valid"])
        return result

    @cached_property
    def evaluator(self) -> Evaluator:
        """What every policy is measured with."""
        return Evaluator(
            self.config,
            catalog=self.catalog,
            train=self.train_examples,
            test=self.measured_examples,
            model_path=self.model_path,
            embed=self.engines.embed,
        )

    def decoding_engine(self) -> str:
        """Name and version of the engine that decoded the test rows."""
        return str(Stage(self.evaluations / "sft").summary["engine"])

    def close(self) -> None:
        """Stop the engines that were started."""
        self._evaluations.shutdown(wait=False, cancel_futures=True)
        self.engines.close()
        self._shared.close()


def _by_example(rollouts: Sequence[Rollout]) -> dict[str, Rollout]:
    return {rollout.example_id: rollout for rollout in rollouts}
