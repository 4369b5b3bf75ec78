"""The sections of a configuration in which methods differ: training phases, the loop, and what is measured."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from sprec_ray.config.data import (
    STRICT,
    ExampleCount,
    MicroBatchSize,
    NonNegativeFloat,
    NonNegativeInt,
    NumberOrValid,
    PositiveFloat,
    PositiveInt,
    Share,
)

Loss = Literal["dpo", "softmax_dpo", "dmpo", "dmpo_pairs", "rosepo", "ipo", "simpo"]
PAIRWISE = frozenset[str](get_args(Loss)) - {"softmax_dpo", "dmpo", "dmpo_pairs"}
"""Losses that take exactly one rejected response; the others take any number."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PhaseConfig:
    """A phase of supervised fine-tuning, of one or more epochs."""

    learning_rate: PositiveFloat = 3e-4
    num_epochs: PositiveInt = 4
    global_batch_size: PositiveInt = 64
    micro_batch_size: MicroBatchSize = 4
    num_warmup_steps: NonNegativeInt = 20
    """Linear warm-up to the learning rate, then linear decay towards 0; the last step is still above it."""
    weighting: Literal["none", "genre"] = "none"
    """``genre`` weights examples so that targets have the genres of histories (RW, IFairLRS)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SelfPlaySftConfig(PhaseConfig):
    """The supervised fine-tuning inside an iteration: short and gentle."""

    learning_rate: PositiveFloat = 2e-5
    num_epochs: PositiveInt = 1


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PreferenceConfig:
    """A phase of preference training, of one or more epochs."""

    loss: Loss = "dpo"
    """``softmax_dpo`` (S-DPO), ``dmpo`` and ``dmpo_pairs`` take any number of rejected titles, the others one.
    Equations: algorithm.md."""
    beta: PositiveFloat = 0.1
    """Strength of the pull towards the reference policy."""
    reference: Literal["post_sft", "pre_sft", "sft0", "base"] = "post_sft"
    """The policy that rewards are measured against: after or before this iteration's SFT, A_0, or no adapter."""
    margin: NonNegativeFloat = 0.0
    """Target margin of ``simpo``, in units of the reward."""
    sft_coef: NonNegativeFloat = 0.0
    """Weight of the chosen title's negative log-likelihood per token, added to any loss."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """``rosepo``'s smoothing, of every pair alike."""
    oracle: bool = False
    """``rosepo`` smooths each pair by the collaborative model's probability that the rejected title is preferred."""
    learning_rate: PositiveFloat = 2e-5
    num_epochs: PositiveInt = 1
    global_batch_size: PositiveInt = 32
    micro_batch_size: MicroBatchSize = 2
    """Groups per forward pass of a worker, each a prompt and its 1 + N responses; ``auto`` takes what fits."""
    num_warmup_steps: NonNegativeInt = 20
    """Linear warm-up to the learning rate, then linear decay towards 0; the last step is still above it."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SelfPlayConfig:
    """The loop, and the switches of its ablations."""

    num_iterations: NonNegativeInt = 5
    num_examples: ExampleCount = 2048
    """Training examples drawn in each iteration, or ``all`` of them."""
    num_negatives: PositiveInt = 1
    """Rejected titles per example; 2N answers are decoded to find them."""
    negatives: Literal["beam", "greedy", "sample", "random", "popular", "similar"] = "beam"
    """The policy's 2N best answers, its best one, 2N that are drawn from it without replacement; ``random`` titles, of
    those that the prompt lists where it lists any (S-DPO), are the ablation RN. ``popular`` draws titles by their
    training events and ``similar`` takes those most like the target (RosePO)."""
    temperature: PositiveFloat = 1.0
    """Of ``sample``."""
    exclude_history: bool = False
    """Reject no answer of the policy that is in the example's history, of at most ``data.max_history`` titles. What
    ``random_ratio`` draws may be in it; recommendations are not filtered."""
    random_ratio: Share = 0.0
    """Share of the self-play negatives that is replaced by uniformly drawn titles (section 5.4.1)."""
    sft: bool = True
    """False is the ablation noSFT."""
    preference: bool = True
    """False is the ablation noDPO."""

    @property
    def asks_the_policy(self) -> bool:
        """Whether rejected titles are decoded; the other ways draw them."""
        return self.negatives in {"beam", "greedy", "sample"}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluationConfig:
    """What is measured after each policy."""

    k: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 5)
    grounding: Literal["search", "ranking", "policy", "sentence"] = "search"
    """What makes a ranking of titles: the search itself, or the probability of every title, which costs as many tokens
    as the catalogue has; or the answer's neighbours in an embedding of titles, the policy's last hidden state or a
    sentence-transformers model."""
    sentence_model: str = "sentence-transformers/paraphrase-MiniLM-L3-v2"
    num_genres: PositiveInt = 10
    """Genres kept for MGU and DGU: the most popular in train, none a parent of another."""
    base: bool = True
    """Also measure the model without an adapter."""
    adjustment: Literal["none", "popularity", "collaborative"] = "none"
    """A second opinion on every title: the share of training events it has, or the collaborative model's probability.
    A ranking by probability adds gamma times its logarithm (D3); one by distance divides by (1 + it) to the gamma
    (BIGRec)."""
    gamma: NumberOrValid = 1.0
    """Weight of the adjustment, (1 - g) / g in the terms of D3; ``valid`` takes the best on the validation rows."""

    @property
    def searches(self) -> bool:
        """Whether answers are titles of the catalogue, found by search or ranking; else texts that are grounded."""
        return self.grounding in {"search", "ranking"}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CollaborativeConfig:
    """A recommender that knows items by their ids, trained on the same examples."""

    model: Literal[
        "sasrec",
        "gru4rec",
        "caser",
        "bert4rec",
        "stamp",
        "shan",
        "gcsan",
        "core",
        "popularity",
        "last_item",
        "random",
    ] = "sasrec"
    """``last_item`` recommends what followed the history's last title in training."""
    hidden_size: PositiveInt = 64
    num_layers: PositiveInt = 2
    num_heads: PositiveInt = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    loss: Literal["bce", "softmax"] = "bce"
    """``bce`` tells the target from ``num_negatives`` uniform items (SASRec); ``softmax`` from the whole catalogue."""
    num_negatives: PositiveInt = 1
    learning_rate: PositiveFloat = 4e-3
    weight_decay: NonNegativeFloat = 0.0
    batch_size: PositiveInt = 256
    num_epochs: PositiveInt = 100
    patience: PositiveInt = 10
    """Epochs without a better NDCG@10 on the validation rows after which training ends; the best epoch is kept."""

    @property
    def learns(self) -> bool:
        """Whether it is trained: popularity, last_item and random are not."""
        return self.model not in {"popularity", "last_item", "random"}

    @model_validator(mode="after")
    def _check(self) -> CollaborativeConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"collaborative.hidden_size={self.hidden_size} must be a multiple of "
                f"collaborative.num_heads={self.num_heads}"
            )
        return self
