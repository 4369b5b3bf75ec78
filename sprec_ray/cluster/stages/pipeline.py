"""The stages of SPRec on Ray: each turns files of the run directory into files, once."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from sprec_ray.cluster.engines.kept import KeptEngines
from sprec_ray.cluster.engines.run_engines import Engines
from sprec_ray.cluster.engines.search_settings import negatives_search
from sprec_ray.cluster.stages.collaborative import Collaborative
from sprec_ray.cluster.stages.language_model import given_model, pretrained_model
from sprec_ray.cluster.stages.make_phase import make_phase
from sprec_ray.cluster.stages.measuring import Measurement
from sprec_ray.cluster.stages.preference_groups import PreferenceGroups, needs_rollouts
from sprec_ray.cluster.stages.prepare_data import check_catalog, prepare_data
from sprec_ray.cluster.stages.run_data import RunData, Split, evaluations_folder
from sprec_ray.cluster.stages.stage_keeper import StageKeeper
from sprec_ray.cluster.stages.title_evaluator import TitleEvaluator, num_answer_tokens
from sprec_ray.config.methods import PhaseConfig, PreferenceConfig
from sprec_ray.config.run import RunConfig
from sprec_ray.data.prompts import parse_response
from sprec_ray.data.sequences import derive_rng
from sprec_ray.selfplay.loop import run_self_play
from sprec_ray.selfplay.sft_groups import genre_weights, sft_groups
from sprec_ray.storage.artifacts import Stage, as_eval_result, read_rollouts, read_rows, write_rows
from sprec_ray.storage.mirror import open_mirror
from sprec_ray.storage.timeline import Clock
from sprec_ray.training.phase import Phase
from sprec_ray.types import AdapterCheckpoint, EvalResult, Example, PreferenceGroup, Rollout

logger = logging.getLogger(__name__)


class RayStages:
    """The ``Stages`` of ``selfplay.loop``, as folders of the run directory."""

    def __init__(
        self, config: RunConfig, folder: Path, *, split: Split = "test", kept: KeptEngines | None = None
    ) -> None:
        self.config, self.folder, self.split = config, folder, split
        self.clock, self.mirror = Clock(folder), open_mirror(config.output_dir)
        self.data = RunData(folder / "data", split)
        self.engines = Engines(
            config, folder, self.clock, lambda: self.data.catalog.titles, self.mirror.push, kept=kept
        )
        self.keeper = StageKeeper(config, folder, self.mirror, may_wait=lambda: not self.engines.are_running)
        self._evaluations = ThreadPoolExecutor(max_workers=1, thread_name_prefix="evaluation")
        self._pending: list[Future[EvalResult]] = []

    def prepare(self) -> None:
        """Make the examples that the loop starts from. Raises ConfigError for settings that they cannot serve."""
        stage = Stage(self.folder / "data")
        if not self.keeper.is_done(stage):
            with self.clock.span("data", "load"), self.keeper.filling(stage, "data") as summary:
                summary.update(counts=prepare_data(self.config.data, out=stage.path))
        check_catalog(self.config, self.data.catalog)

    def run(self, *, on_result: Callable[[EvalResult], None] | None = None) -> list[EvalResult]:
        """Train and measure what the configuration describes; the results in order, baselines last.

        ``on_result`` as of ``run_self_play``.
        """
        if self.config.needs_recommender:
            _ = self.collaborative.recommender  # before engines run: it may wait for a run that trains the same
        if self.config.recommender == "language_model":
            results = run_self_play(self.config, self, on_result=on_result)
        else:
            results = [self.collaborative.evaluate(self.evaluations, self.measurement.evaluator)]
            if on_result is not None:
                on_result(results[0])
        evaluator = self.measurement.evaluator
        if isinstance(evaluator, TitleEvaluator):
            evaluator.write_catalog(self.evaluations / "catalog")
        return [*results, *evaluator.baselines()]

    @property
    def evaluations(self) -> Path:
        """The folder of the evaluations on the split."""
        return self.folder / evaluations_folder(self.split)

    @cached_property
    def model_path(self) -> str:
        """The folder or hub name of the language model."""
        return given_model(self.config) or pretrained_model(
            self.config, self.mirror, self.engines, train=self.data.train, catalog=self.data.catalog
        )

    def first_sft(self) -> AdapterCheckpoint:
        """A_0: SFT of a fresh adapter on all training examples."""
        return self._sft(Stage(self.folder / "sft"), None, self.data.train, version=1, name="sft")

    def sample(self, iteration: int) -> list[Example]:
        """This iteration's examples, drawn without replacement with a seed of their own."""
        examples = self.data.train
        asked = self.config.selfplay.num_examples
        count = len(examples) if asked == "all" else min(asked, len(examples))
        rng = derive_rng(self.config.seed, f"self-play/{iteration}")
        return [examples[index] for index in sorted(rng.permutation(len(examples))[:count].tolist())]

    def start_decoding(
        self, iteration: int, policy: AdapterCheckpoint, examples: Sequence[Example]
    ) -> Callable[[], dict[str, Rollout]] | None:
        """Begin to decode answers to the examples; None when they are not asked for."""
        if not needs_rollouts(self.config) or self.keeper.is_done(Stage(self._iteration(iteration) / "groups")):
            return None
        stage = Stage(self._iteration(iteration) / "rollouts")
        file = stage.path / "rollouts.jsonl"
        if self.keeper.is_done(stage):
            return lambda: _by_example(read_rollouts(file))
        start = time.time()
        stage.start()

        def finish(rollouts: list[Rollout]) -> None:
            """Called by the decoding thread, so that nothing is lost when what runs beside it fails."""
            write_rows(file, rollouts)
            self.clock.add(f"iteration {iteration}: negatives", "decode", start, time.time() - start)
            self.keeper.finish(stage, {"num_answer_tokens": num_answer_tokens(rollouts)})
            logger.info("iteration %d: negatives decoded", iteration)

        pending = self.engines.decode(
            policy,
            examples,
            self.model_path,
            search=negatives_search(self.config, iteration),
            is_valid=lambda text: parse_response(text) in self.data.catalog,
            chunks=stage.partial / "chunks",
            label=f"iteration {iteration}: decoding",
            then=finish,
        )
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
        if self.keeper.is_done(stage):
            return read_rows(stage.path / "groups.jsonl", PreferenceGroup)
        rollouts = decoding() if decoding is not None else {}
        groups, counts = self.preference_groups.make(iteration, examples, rollouts)
        with self.keeper.filling(stage, f"iteration {iteration}: {len(groups)} preference groups") as summary:
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
        if not self.keeper.is_done(stage):
            phase = self._phase(stage, self.config.preference, init, reference)
            with self.keeper.filling(stage, name) as summary:
                summary.update(self.engines.train(stage, phase, groups, name))
        return self._adapter(stage, 2 * iteration + 3)

    def evaluate(self, label: str, policy: AdapterCheckpoint | None) -> Callable[[], EvalResult]:
        """Begin to measure a policy, beside what comes next where that may be; returns what waits for the result."""
        stage = Stage(self.evaluations / label)
        if self.keeper.is_done(stage):
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
        if not self.keeper.is_done(stage):
            settings = self.config.sft if init is None else self.config.selfplay_sft
            genres = self.data.catalog.genres
            weights = genre_weights(examples, genres) if settings.weighting == "genre" else None
            phase = self._phase(stage, settings, init, None)
            with self.keeper.filling(stage, name) as summary:
                summary.update(self.engines.train(stage, phase, sft_groups(examples, weights), name))
        return self._adapter(stage, version)

    def _phase(
        self,
        stage: Stage,
        optimization: PhaseConfig | PreferenceConfig,
        init: AdapterCheckpoint | None,
        reference: AdapterCheckpoint | None,
    ) -> Phase:
        adapters, model_path = (init, reference), self.model_path
        return make_phase(self.config, self.folder, stage, optimization, model_path=model_path, adapters=adapters)

    def _adapter(self, stage: Stage, version: int) -> AdapterCheckpoint:
        adapter = AdapterCheckpoint(path=str(stage.path), version=version)
        self.engines.remember_canary(adapter, stage.summary["canary"])
        return adapter

    def _evaluate(self, stage: Stage, label: str, policy: AdapterCheckpoint | None) -> EvalResult:
        rollouts, about = self.measurement.decode(label, policy, stage, rows=self.split)
        with self.keeper.filling(stage, f"{label}: evaluation") as summary:
            result = self.measurement.score(label, policy, rollouts, stage, gamma=about["gamma"])
            summary.update(result=dataclasses.asdict(result), **about)
        return result

    @cached_property
    def measurement(self) -> Measurement:
        """What every policy is measured with."""
        return Measurement(
            self.config,
            self.data,
            self.engines,
            self.clock,
            model_path=lambda: self.model_path,
            recommender=lambda: self.collaborative.recommender,
        )

    @cached_property
    def collaborative(self) -> Collaborative:
        """The stages of the collaborative model."""
        return Collaborative(self.config, self.folder, self.data, self.keeper, self.clock)

    @cached_property
    def preference_groups(self) -> PreferenceGroups:
        """What makes preference groups."""
        embed = self.measurement.title_embedder
        return PreferenceGroups(self.config, self.data, embed=embed, recommender=lambda: self.collaborative.recommender)

    def engine_names(self) -> dict[str, str]:
        """Names and versions of the engines that decoded the measured rows and trained."""
        if self.config.recommender == "collaborative":
            return {"training": f"torch {version('torch')}"}
        decoding = str(Stage(self.evaluations / "sft").summary["engine"])
        return {"decoding": decoding, "training": f"DeepSpeed, ZeRO {self.config.training.zero_stage}"}

    def close(self) -> None:
        """Stop the engines that were started."""
        self._evaluations.shutdown(wait=False, cancel_futures=True)
        self.engines.close()
        self.keeper.close()


def _by_example(rollouts: Sequence[Rollout]) -> dict[str, Rollout]:
    return {rollout.example_id: rollout for rollout in rollouts}
