"""The configuration of a run: a frozen, typed ``RunConfig`` and its sections."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from sprec_ray.config.data import (
    STRICT,
    DataConfig,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ScratchConfig,
)
from sprec_ray.config.methods import (
    PAIRWISE,
    CollaborativeConfig,
    EvaluationConfig,
    PhaseConfig,
    PreferenceConfig,
    SelfPlayConfig,
    SelfPlaySftConfig,
)


class ConfigError(ValueError):
    """A configuration that cannot run; its message is one line that names the key and the remedy."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LoraConfig:
    """The adapter that is trained."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Used in SFT; preference training runs without dropout."""
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = tuple(
        f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """The language model under the adapter."""

    name_or_path: str = "scratch"
    """A folder, a model on the hub, or ``scratch`` to pre-train the small Llama on the training examples."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantization: Literal["none", "nf4"] = "none"
    """``nf4`` trains the adapter on base weights held in 4 bits (QLoRA), on GPUs only; it computes in ``dtype``."""
    max_prompt_tokens: PositiveInt = 480
    max_response_tokens: PositiveInt = 48
    """A decoded title's tokens, quotes, line feed and end of sequence included; training keeps longer ones whole."""
    trust_remote_code: bool = False
    scratch: ScratchConfig = ScratchConfig()
    lora: LoraConfig = LoraConfig()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingConfig:
    """How every training phase runs on the workers."""

    num_workers: PositiveInt = 1
    cpus_per_worker: PositiveFloat = 1.0
    gpus_per_worker: NonNegativeFloat = 0.0
    """0 trains on the CPU (gloo); a share below 1 lets a decoder live on the same GPU."""
    num_threads: NonNegativeInt = 0
    """CPU threads of a worker; 0 shares all cores among the workers. Without effect on GPUs."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    max_grad_norm: PositiveFloat = 1.0
    weight_decay: NonNegativeFloat = 0.0
    gradient_checkpointing: bool = False
    save_steps: PositiveInt = 20
    """Optimizer steps between two states on disk, from which an interrupted phase goes on."""
    max_failures: NonNegativeInt = 3
    """How often the worker group is started again after a worker died, over its whole life; an error in a phase ends
    the run at once."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DecodingConfig:
    """The pool of engines that writes recommendations."""

    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """``auto`` takes vLLM where it is installed; the report says which ran."""
    search: Literal["exact", "beam", "free"] = "exact"
    """How answers are found: the most probable titles of the catalogue, those that beams over it find, or free beams,
    whose answers may be no titles."""
    beam_width: PositiveInt = 10
    """Least beams of a ``beam`` search."""
    max_search_tokens: PositiveInt = 1024
    """Tokens that an ``exact`` search computes for a prompt before it goes on as beams; the report counts such rows."""
    renormalize: bool = False
    """Rank by probabilities among the tokens that the catalogue allows, instead of over the whole vocabulary."""
    placement: Literal["split", "colocate", "sequential"] = "split"
    """``split``: decoding runs beside training. ``colocate``: they take turns on shared GPUs, decoders asleep while
    workers compute. ``sequential``: each ends before the other launches. The results are the same; see operations.md.
    """
    num_decoders: PositiveInt = 1
    cpus_per_decoder: PositiveFloat = 1.0
    gpus_per_decoder: NonNegativeFloat = 0.0
    tensor_parallel_size: PositiveInt = 1
    """GPUs that a vLLM engine spreads one model over; above 1 each decoder reserves as many whole GPUs."""
    chunk_size: PositiveInt = 128
    """Prompts handed to a decoder at a time."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.4
    kv_cache_gib: PositiveFloat = 1.0
    """Size of the key-value cache of a vLLM engine on a CPU."""
    search_cache_gib: PositiveFloat = 2.0
    """Memory of a decoder for the keys and values of the prompts that it searches together, besides the engine's own
    cache; less means fewer prompts at once."""
    canary_tolerance: PositiveFloat = 0.05
    """Largest difference (nats per token) between a decoder's and the trainer's log-probability of one response."""

    @property
    def reserved_gpus(self) -> float:
        """GPUs that Ray reserves for one decoder."""
        return self.gpus_per_decoder * self.tensor_parallel_size


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    """Everything a run depends on."""

    name: str = "demo"
    """The run's folder under ``output_dir``."""
    output_dir: str = "runs"
    share_stages: bool = False
    """Take finished stages from runs of the same ``output_dir`` that agree in all a stage depends on, and offer one's
    own; sweeps do."""
    seed: NonNegativeInt = 0
    recommender: Literal["language_model", "collaborative"] = "language_model"
    """What is trained and measured: a language model by the loop, or only the collaborative model, as a baseline."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    sft: PhaseConfig = PhaseConfig()
    """The first SFT, that makes A_0."""
    selfplay_sft: SelfPlaySftConfig = SelfPlaySftConfig()
    """The SFT inside an iteration."""
    preference: PreferenceConfig = PreferenceConfig()
    decoding: DecodingConfig = DecodingConfig()
    selfplay: SelfPlayConfig = SelfPlayConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    collaborative: CollaborativeConfig = CollaborativeConfig()
    """The model that knows items by their ids: a baseline, D3's and RosePO's second opinion."""

    @property
    def needs_recommender(self) -> bool:
        """Whether a collaborative model has to be trained."""
        return (
            self.recommender == "collaborative"
            or self.evaluation.adjustment == "collaborative"
            or (self.preference.oracle and self.selfplay.preference)
        )

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        """Check what sections demand of each other."""
        if self.preference.loss in PAIRWISE and self.selfplay.num_negatives > 1:
            raise ValueError(
                f"selfplay.num_negatives={self.selfplay.num_negatives} needs preference.loss=softmax_dpo; "
                f"{self.preference.loss} takes one rejected title"
            )
        self._check_search()
        self._check_candidates()
        self._check_method()
        if self.data.source != "demo" and not self.data.path:
            raise ValueError(f"data.source={self.data.source} needs data.path=FOLDER")
        if abs(sum(self.data.split) - 1) > 1e-9:
            raise ValueError(f"data.split={list(self.data.split)} must sum to 1")
        if self.data.min_history > self.data.max_history:
            raise ValueError("data.min_history must not exceed data.max_history")
        if not self.name or "/" in self.name or self.name in {".", "..", "cache"}:
            raise ValueError(f"name={self.name!r} must be a single folder name, and not 'cache'")
        for section in ("sft", "selfplay_sft", "preference"):
            phase = getattr(self, section)
            if phase.global_batch_size % self.training.num_workers:
                raise ValueError(
                    f"{section}.global_batch_size={phase.global_batch_size} must be a multiple of "
                    f"training.num_workers={self.training.num_workers}"
                )
        if self.model.quantization == "nf4":
            self._check_nf4()
        if self.decoding.tensor_parallel_size > 1:
            self._check_tensor_parallel()
        if self.model.scratch.hidden_size % (2 * self.model.scratch.num_heads):
            raise ValueError("model.scratch.hidden_size must be a multiple of twice model.scratch.num_heads")
        return self

    def _check_candidates(self) -> None:
        if self.data.task != "candidates":
            return
        ratio = 1.0 if self.selfplay.negatives == "random" else self.selfplay.random_ratio
        # Where some of the titles are replaced, one that was not rejected before must be left for it.
        num_others = self.data.num_candidates - (1 if ratio == 1 else 2)
        if ratio and self.selfplay.num_negatives > num_others:
            raise ValueError(
                f"selfplay.num_negatives={self.selfplay.num_negatives} exceeds the {num_others} candidates that random "
                "negatives can be drawn from; lower it or raise data.num_candidates"
            )
        if max(self.evaluation.k) > self.data.num_candidates:
            raise ValueError(
                f"evaluation.k={max(self.evaluation.k)} exceeds data.num_candidates={self.data.num_candidates}, which "
                "are all that is ranked; lower it"
            )
        if self.evaluation.adjustment != "none":
            raise ValueError(
                f"evaluation.adjustment={self.evaluation.adjustment} weighs titles of the catalogue, and "
                "data.task=candidates ranks a prompt's own; set evaluation.adjustment=none"
            )

    def _check_search(self) -> None:
        free = self.decoding.search == "free"
        grounding = self.evaluation.grounding
        if self.data.task == "next_item" and free and self.evaluation.searches:
            raise ValueError(
                f"evaluation.grounding={grounding} ranks titles of the catalogue, and decoding.search=free finds none; "
                "set evaluation.grounding=policy or decoding.search=exact"
            )
        if free and self.selfplay.negatives == "sample":
            raise ValueError("selfplay.negatives=sample draws titles of the catalogue; set decoding.search=exact")
        if self.selfplay.negatives == "greedy" and self.selfplay.num_negatives > 1:
            raise ValueError(
                f"selfplay.negatives=greedy gives one answer, and selfplay.num_negatives={self.selfplay.num_negatives} "
                "asks for more; set selfplay.negatives=beam"
            )

    def _check_method(self) -> None:
        if self.data.task == "pairs":
            self._check_pairs()
        preference, selfplay, evaluation = self.preference, self.selfplay, self.evaluation
        draws = not selfplay.asks_the_policy
        without_effect = (
            ("preference.oracle=true", preference.oracle and preference.loss != "rosepo", "preference.loss=rosepo"),
            ("preference.label_smoothing", preference.label_smoothing and preference.loss != "rosepo", "loss=rosepo"),
            ("preference.margin", preference.margin and preference.loss != "simpo", "preference.loss=simpo"),
            ("evaluation.gamma", evaluation.gamma != 1 and evaluation.adjustment == "none", "evaluation.adjustment"),
            ("selfplay.random_ratio", selfplay.random_ratio and draws, "selfplay.negatives=beam"),
            ("selfplay.exclude_history", selfplay.exclude_history and draws, "selfplay.negatives=beam"),
        )
        for key, is_idle, needed in without_effect:
            if is_idle:
                raise ValueError(f"{key} has an effect only with {needed}; set that, or leave it out")
        if preference.oracle and preference.label_smoothing:
            raise ValueError("preference.oracle=true smooths each pair by itself; leave preference.label_smoothing out")
        needs_opinion = evaluation.adjustment == "collaborative" or preference.oracle
        if needs_opinion and self.collaborative.model == "random":
            raise ValueError("collaborative.model=random has no opinion for evaluation.adjustment or preference.oracle")

    def _check_pairs(self) -> None:
        if self.selfplay.num_iterations > (self.data.answer == "ranking"):
            raise ValueError(
                f"selfplay.num_iterations={self.selfplay.num_iterations}: the answers of data.task=pairs are given, so "
                "it is 1 (more preference.num_epochs train longer), or 0 with data.answer=yes_no, which is SFT only"
            )
        asks = self.selfplay.num_iterations and self.selfplay.preference and self.selfplay.negatives != "random"
        if asks:
            raise ValueError(
                f"selfplay.negatives={self.selfplay.negatives} looks for negatives, and the answers of data.task=pairs "
                "are given; set selfplay.negatives=random"
            )
        unread = (
            ("sft.weighting", self.sft.weighting, "none"),
            ("selfplay_sft.weighting", self.selfplay_sft.weighting, "none"),
            ("preference.oracle", self.preference.oracle, False),
            ("evaluation.adjustment", self.evaluation.adjustment, "none"),
        )
        for key, value, default in unread:
            if value != default:
                raise ValueError(f"{key}={value} has no effect on data.task=pairs; leave it out")

    def _check_nf4(self) -> None:
        if not self.training.gpus_per_worker or not self.decoding.gpus_per_decoder:
            raise ValueError(
                "model.quantization=nf4 needs training.gpus_per_worker and decoding.gpus_per_decoder above 0; "
                "without GPUs set model.quantization=none"
            )
        if self.training.zero_stage == 3:
            raise ValueError("model.quantization=nf4 cannot have training.zero_stage=3; set training.zero_stage=2")

    def _check_tensor_parallel(self) -> None:
        size = self.decoding.tensor_parallel_size
        if self.decoding.engine == "transformers" or self.decoding.gpus_per_decoder != 1:
            raise ValueError(
                f"decoding.tensor_parallel_size={size} needs vLLM on {size} whole GPUs per decoder: set "
                "decoding.engine=vllm and decoding.gpus_per_decoder=1, or decoding.tensor_parallel_size=1"
            )
        if self.decoding.placement == "colocate":
            raise ValueError(
                f"decoding.placement=colocate lets a decoder share one GPU, and decoding.tensor_parallel_size={size} "
                "takes several whole ones; set decoding.placement=sequential or split"
            )
