"""The stages of a run that tells liked from disliked titles (DMPO, arXiv 2405.16127; TALLRec, arXiv 2305.00447)."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from sprec_ray.cluster.engines.kept import KeptEngines
from sprec_ray.cluster.engines.run_engines import Engines
from sprec_ray.cluster.engines.tasks import ReadPolicy, ScoreTask
from sprec_ray.cluster.stages.collaborative import RECOMMENDER, Collaborative
from sprec_ray.cluster.stages.language_model import cached_model, given_model
from sprec_ray.cluster.stages.make_phase import make_phase
from sprec_ray.cluster.stages.prepare_pairs import prepare_pairs
from sprec_ray.cluster.stages.run_data import RunData, Split, evaluations_folder
from sprec_ray.cluster.stages.stage_keeper import StageKeeper
from sprec_ray.config.methods import PhaseConfig, PreferenceConfig
from sprec_ray.config.run import ConfigError, RunConfig
from sprec_ray.data.pair_examples import first_answer, pretraining_groups, ranking_group, yes_no_groups
from sprec_ray.data.pair_prompts import render_judgement, render_judgement_prompt
from sprec_ray.data.sequences import derive_rng
from sprec_ray.evaluation.pairs import (
    RESPONSE_SCORES,
    PairScores,
    pair_metrics,
    response_scores,
    scored_metrics,
    scored_rows,
    yes_no_scores,
)
from sprec_ray.selfplay.loop import run_self_play
from sprec_ray.storage.artifacts import Stage, as_eval_result, read_rows, write_added, write_json
from sprec_ray.storage.mirror import open_mirror
from sprec_ray.storage.timeline import Clock
from sprec_ray.types import AdapterCheckpoint, EvalResult, Example, JudgementGroup, PairExample

logger = logging.getLogger(__name__)

Logps = list[list[list[float]]]
"""Token log-probabilities per group and answer, nats."""


class PairStages:
    """The ``Stages`` of ``selfplay.loop`` where the answers to reject are given: nothing is decoded.

    Folders, engines and sharing are those of ``RayStages``; what differs is the rows and how a policy is measured.
    """

    def __init__(
        self, config: RunConfig, folder: Path, *, split: Split = "test", kept: KeptEngines | None = None
    ) -> None:
        self.config, self.folder, self.split = config, folder, split
        self.clock, self.mirror = Clock(folder), open_mirror(config.output_dir)
        self.data = RunData(folder / "data", split, read=_read_liked)
        self.engines = Engines(config, folder, self.clock, push=self.mirror.push, kept=kept)
        self.keeper = StageKeeper(config, folder, self.mirror, may_wait=lambda: not self.engines.are_running)

    def prepare(self) -> None:
        """Make the rows that training starts from. Raises ConfigError for negatives that they do not hold."""
        stage = Stage(self.folder / "data")
        if not self.keeper.is_done(stage):
            with self.clock.span("data", "load"), self.keeper.filling(stage, "data") as summary:
                summary.update(counts=prepare_pairs(self.config.data, out=stage.path))
        wanted = self.config.selfplay.num_negatives
        held = min(len(example.disliked) for example in self.train_examples)
        if self.config.selfplay.num_iterations and held < wanted:
            raise ConfigError(
                f"selfplay.num_negatives={wanted}, but a training row has only {held} disliked titles; lower it"
            )

    def run(self, *, on_result: Callable[[EvalResult], None] | None = None) -> list[EvalResult]:
        """Train and measure what the configuration describes; the results in order, baselines last."""
        if self.config.recommender == "language_model":
            return [*run_self_play(self.config, self, on_result=on_result), *self.baselines()]
        result = self._recommender()
        if on_result is not None:
            on_result(result)
        return [result, *self.baselines()]

    def _rows(self, split: str) -> list[PairExample]:
        rows = read_rows(self.folder / "data" / f"{split}.jsonl", PairExample)
        if not rows:
            raise ConfigError(
                f"{self.folder / 'data'} has no {split} rows: DMPO's files hold validation users of some data sets "
                "only; measure on the test rows (in a sweep split: test), or take data with ratings"
            )
        return rows

    @cached_property
    def train_examples(self) -> list[PairExample]:
        """All training rows."""
        return self._rows("train")

    @cached_property
    def measured_examples(self) -> list[PairExample]:
        """The rows that policies are measured on."""
        return self._rows(self.split)

    @cached_property
    def model_path(self) -> str:
        """The folder or hub name of the language model."""
        return given_model(self.config) or self._small_model()

    def _small_model(self) -> str:
        titles, text = self.data.catalog.titles, self.engines.text
        rows = pretraining_groups(self.train_examples, titles, seed=self.config.model.scratch.seed)
        texts = (
            render_judgement_prompt(row.history, row.candidates[0], template=text.template, noun=text.noun)
            + render_judgement(row.answers[0], template=text.template)
            for row in rows
        )
        content = ["pairs", [dataclasses.astuple(row) for row in rows]]
        return cached_model(self.config, self.mirror, self.engines, rows=rows, texts=texts, content=content)

    @cached_property
    def _sft_rows(self) -> list[JudgementGroup]:
        """The right answers: to the first pair of every user, or Yes. and No. to its two titles."""
        if self.config.data.answer == "yes_no":
            groups = [group for example in self.train_examples for group in yes_no_groups(example)]
        else:
            groups = [ranking_group(example, 1) for example in self.train_examples]
        return [first_answer(group) for group in groups]

    def first_sft(self) -> AdapterCheckpoint:
        """A_0: SFT of a fresh adapter on the right answers."""
        return self._train(Stage(self.folder / "sft"), self._sft_rows, self.config.sft, name="sft", number=1)

    def sample(self, iteration: int) -> list[PairExample]:
        """All training rows."""
        return self.train_examples

    def start_decoding(self, iteration: int, policy: AdapterCheckpoint, examples: Sequence[PairExample]) -> None:
        """Nothing: the answers to reject are given."""

    def train_sft(self, iteration: int, init: AdapterCheckpoint, examples: Sequence[PairExample]) -> AdapterCheckpoint:
        """Continue ``init`` on the right answers."""
        stage, name = Stage(self._iteration(iteration) / "sft"), f"iteration {iteration}: sft"
        settings = self.config.selfplay_sft
        return self._train(stage, self._sft_rows, settings, name=name, number=2 * iteration + 2, adapters=(init, None))

    def pair(self, iteration: int, examples: Sequence[PairExample], decoding: Any) -> list[JudgementGroup]:
        """The right answer to every user's first prompt, and the wrong ones to its N prompts."""
        return [ranking_group(example, self.config.selfplay.num_negatives) for example in examples]

    def train_preferences(
        self,
        iteration: int,
        init: AdapterCheckpoint,
        reference: AdapterCheckpoint | None,
        groups: Sequence[JudgementGroup],
    ) -> AdapterCheckpoint:
        """Continue ``init`` on the groups, measured against ``reference``."""
        stage, settings = Stage(self._iteration(iteration) / "preference"), self.config.preference
        name, number = f"iteration {iteration}: {settings.loss}", 2 * iteration + 3
        return self._train(stage, groups, settings, name=name, number=number, adapters=(init, reference))

    def _iteration(self, iteration: int) -> Path:
        return self.folder / f"iteration-{iteration}"

    def _train(
        self,
        stage: Stage,
        groups: Sequence[JudgementGroup],
        settings: PhaseConfig | PreferenceConfig,
        *,
        number: int,
        name: str,
        adapters: tuple[AdapterCheckpoint | None, AdapterCheckpoint | None] = (None, None),
    ) -> AdapterCheckpoint:
        if not self.keeper.is_done(stage):
            model = self.model_path
            phase = make_phase(self.config, self.folder, stage, settings, model_path=model, adapters=adapters)
            with self.keeper.filling(stage, name) as summary:
                summary.update(self.engines.train(stage, phase, groups, name))
        return AdapterCheckpoint(path=str(stage.path), version=number)

    def evaluate(self, label: str, policy: AdapterCheckpoint | None) -> Callable[[], EvalResult]:
        """Measure a policy: the probabilities of both orderings of every row, or of Yes. to both titles."""
        stage = Stage(self.evaluations / label)
        if not self.keeper.is_done(stage):
            yes_no = self.config.data.answer == "yes_no"
            examples = self.measured_examples
            groups = [group for example in examples for group in self._asked(example)]
            logps = self._score(groups, label, policy)
            scores = yes_no_scores(logps) if yes_no else response_scores(*zip(*logps, strict=True))
            with self.keeper.filling(stage, f"{label}: evaluation") as summary:
                write_json(stage.path / "scores.json", _scores(groups, logps))
                summary.update(self._measure(label, scores, stage))
        return lambda: as_eval_result(stage.summary["result"])

    def _asked(self, example: PairExample) -> tuple[JudgementGroup, ...]:
        return yes_no_groups(example) if self.config.data.answer == "yes_no" else (ranking_group(example, 1),)

    def _score(self, groups: Sequence[JudgementGroup], label: str, policy: AdapterCheckpoint | None) -> Logps:
        read = ReadPolicy.of(self.config.model, self.model_path, policy)
        task = ScoreTask(policy=read, groups=tuple(groups), text=self.engines.text)
        with self.clock.span(f"{label}: {self.split} rows", "evaluate"):
            logps: Logps = self.engines.read(task, f"{label}: scoring")["logps"]
        return logps

    def _measure(self, label: str, scores: PairScores, stage: Stage) -> dict[str, Any]:
        """The result of a policy, as its stage keeps it; the folder gets what every row adds to each metric."""
        write_added(stage.path, [row.example_id for row in self.measured_examples], scored_rows(scores))
        counts = {"num_rows": len(self.measured_examples)}
        result = EvalResult(label=label, metrics=scored_metrics(scores), counts=counts)
        return {"result": dataclasses.asdict(result)}

    def _recommender(self) -> EvalResult:
        """The collaborative model's scores of the liked and the disliked titles, after the histories."""
        stage, settings = Stage(self.evaluations / RECOMMENDER), self.config.collaborative
        if not self.keeper.is_done(stage):
            recommender = Collaborative(self.config, self.folder, self.data, self.keeper, self.clock).recommender
            scores_BI = recommender.scores([example.history for example in self.measured_examples])
            both = [
                [scores[self.data.catalog.index_of(title)] for title in (example.liked, example.disliked[0])]
                for scores, example in zip(scores_BI, self.measured_examples, strict=True)
            ]
            liked, disliked = np.array(both, dtype=np.float64).T
            with self.keeper.filling(stage, f"{settings.model}: evaluation") as summary:
                summary.update(self._measure(RECOMMENDER, {"": (liked, disliked)}, stage))
        return as_eval_result(stage.summary["result"])

    def baselines(self) -> list[EvalResult]:
        """What titles alone tell: how many training users like one, which share of its judges does, and chance."""
        likes: Counter[str] = Counter()
        dislikes: Counter[str] = Counter()
        for example in self.train_examples:
            likes.update({*example.history, example.liked})
            dislikes.update(set(example.disliked))
        examples = self.measured_examples
        drawn = derive_rng(self.config.seed, "random baseline").random((2, len(examples)))
        pairs = [(example.liked, example.disliked[0]) for example in examples]
        share = {title: (likes[title] + 1) / (likes[title] + dislikes[title] + 2) for pair in pairs for title in pair}
        scores = {
            "popularity": ([likes[liked] for liked, _ in pairs], [likes[other] for _, other in pairs]),
            "liked share": ([share[liked] for liked, _ in pairs], [share[other] for _, other in pairs]),
            "random": (drawn[0], drawn[1]),
        }
        counts = {"num_rows": len(examples)}
        return [EvalResult(label=name, metrics=pair_metrics(*both), counts=counts) for name, both in scores.items()]

    @property
    def evaluations(self) -> Path:
        """The folder of the evaluations on the split."""
        return self.folder / evaluations_folder(self.split)

    def engine_names(self) -> dict[str, str]:
        """Names and versions of what trained and measured."""
        if self.config.recommender == "collaborative":
            return {"training": f"torch {version('torch')}"}
        return {"training": f"DeepSpeed, ZeRO {self.config.training.zero_stage}", "scoring": "the training workers"}

    def close(self) -> None:
        """Stop the engines that were started."""
        self.engines.close()
        self.keeper.close()


def _read_liked(file: Path) -> list[Example]:
    """The rows as the collaborative model learns them: what a user likes next."""
    return [
        Example(example_id=row.example_id, history=row.history, target=row.liked)
        for row in read_rows(file, PairExample)
    ]


def _scores(groups: Sequence[JudgementGroup], logps: Logps) -> list[dict[str, Any]]:
    """Every group's answers, the right one first, with all scores of each."""
    names = {ending: ending.lstrip("_") or "mean_probability" for ending in RESPONSE_SCORES}
    return [
        {
            "example_id": group.example_id,
            "answers": group.answers,
            **{names[ending]: [score(answer) for answer in rows] for ending, score in RESPONSE_SCORES.items()},
        }
        for group, rows in zip(groups, logps, strict=True)
    ]
