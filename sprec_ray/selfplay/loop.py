"""The SPRec algorithm (arXiv 2412.09243, section 4): no Ray, no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from sprec_ray.config.run import RunConfig
from sprec_ray.types import AdapterCheckpoint, EvalResult

Row = TypeVar("Row")
Group = TypeVar("Group")


class Stages(Protocol[Row, Group]):
    """What the loop asks for. Each stage is done once: asked again, it returns what is on disk.

    Examples and groups are handed through: only the stages look into them.
    """

    def first_sft(self) -> AdapterCheckpoint:
        """A_0: SFT of a fresh adapter on all training examples."""

    def sample(self, iteration: int) -> Sequence[Row]:
        """This iteration's training examples."""

    def start_decoding(self, iteration: int, policy: AdapterCheckpoint, examples: Sequence[Row]) -> Any:
        """Decode the policy's own answers, or only begin to; returns a handle."""

    def train_sft(self, iteration: int, init: AdapterCheckpoint, examples: Sequence[Row]) -> AdapterCheckpoint:
        """Continue ``init`` on the targets of the examples."""

    def pair(self, iteration: int, examples: Sequence[Row], decoding: Any) -> Sequence[Group]:
        """The preference groups of the examples; waits for the decoding."""

    def train_preferences(
        self,
        iteration: int,
        init: AdapterCheckpoint,
        reference: AdapterCheckpoint | None,
        groups: Sequence[Group],
    ) -> AdapterCheckpoint:
        """Continue ``init`` on the groups, measured against ``reference`` (None: the model without adapter)."""

    def evaluate(self, label: str, policy: AdapterCheckpoint | None) -> Callable[[], EvalResult]:
        """Begin to measure a policy on the test rows; the returned call waits for the metrics."""


def reference_of(
    name: str, *, pre_sft: AdapterCheckpoint, post_sft: AdapterCheckpoint, sft0: AdapterCheckpoint
) -> AdapterCheckpoint | None:
    """The reference policy: the published code uses ``post_sft``, eq. 7 of the paper writes ``pre_sft``."""
    return {"post_sft": post_sft, "pre_sft": pre_sft, "sft0": sft0, "base": None}[name]


def run_self_play(
    config: RunConfig, stages: Stages[Any, Any], *, on_result: Callable[[EvalResult], None] | None = None
) -> list[EvalResult]:
    """Alternate SFT with DPO against the policy's own predictions; returns the metrics of every policy in order.

    ``on_result`` is told the metrics of a trained policy before anything is built on it; what it raises ends the loop.
    """
    evaluations = []

    def evaluate(label: str, policy: AdapterCheckpoint) -> None:
        evaluations.append(stages.evaluate(label, policy))
        if on_result is not None:
            on_result(evaluations[-1]())

    if config.evaluation.base:
        evaluations.append(stages.evaluate("base", None))
    policy = sft0 = stages.first_sft()
    evaluate("sft", policy)
    for iteration in range(config.selfplay.num_iterations):
        examples = stages.sample(iteration)
        # Decoding needs only the policy before this iteration's SFT, so the SFT may run beside it.
        decoding = stages.start_decoding(iteration, policy, examples) if config.selfplay.preference else None
        trained = stages.train_sft(iteration, policy, examples) if config.selfplay.sft else policy
        if config.selfplay.preference:
            groups = stages.pair(iteration, examples, decoding)
            reference = reference_of(config.preference.reference, pre_sft=policy, post_sft=trained, sft0=sft0)
            trained = stages.train_preferences(iteration, trained, reference, groups)
        policy = trained
        evaluate(f"iteration-{iteration}", policy)
    return [evaluation() for evaluation in evaluations]
