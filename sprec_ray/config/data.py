"""The sections of a configuration that describe data and the small Llama, and the number types of all sections."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator
from pydantic.dataclasses import dataclass

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


def size_or_auto(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Validate a number or ``auto``, with one message for both."""
    try:
        return validate(value)
    except ValidationError:  # one for each half of the type
        raise ValueError(f"{value!r} is neither a whole number above 0 nor auto") from None


def count_or_all(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Validate a number or ``all``, with one message for both."""
    try:
        return validate(value)
    except ValidationError:
        raise ValueError(f"{value!r} is neither a whole number above 0 nor all") from None


def number_or_valid(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Validate a number or ``valid``, with one message for both."""
    try:
        return validate(value)
    except ValidationError:
        raise ValueError(f"{value!r} is neither a number of 0 or more nor valid") from None


MicroBatchSize = Annotated[PositiveInt | Literal["auto"], WrapValidator(size_or_auto)]
NumberOrValid = Annotated[NonNegativeFloat | Literal["valid"], WrapValidator(number_or_valid)]
ExampleCount = Annotated[PositiveInt | Literal["all"], WrapValidator(count_or_all)]

STRICT = ConfigDict(extra="forbid", coerce_numbers_to_str=True)  # a name like 2024 is a number to YAML


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DemoDataConfig:
    """The generated catalogue and users of the embedded default."""

    num_items: Annotated[int, Field(ge=50)] = 400
    num_users: PositiveInt = 1200
    seed: NonNegativeInt = 0
    """Of the generated catalogue and readers."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """Where interactions come from, and how they become examples."""

    source: Literal["demo", "sprec", "movielens", "huggingface", "dmpo", "llara"] = "demo"
    task: Literal["next_item", "candidates", "pairs"] = "next_item"
    """What a prompt asks for: any title of the catalogue (SPRec), one of the titles it lists (S-DPO), or which of two
    titles is liked better (DMPO)."""
    num_candidates: Annotated[int, Field(ge=2)] = 20
    """Titles that a prompt of ``task=candidates`` lists: the target and titles drawn outside the history."""
    path: str | None = None
    """Folder of the raw files; for ``huggingface`` a folder, a file or the name of a dataset on the hub."""
    noun: Literal["book", "movie", "game", "album", "artist", "item"] = "item"
    """What the prompt calls an item."""
    template: Literal["alpaca", "short"] = "alpaca"
    min_interactions: PositiveInt = 10
    """Users with fewer interactions are dropped."""
    min_history: PositiveInt = 3
    """Windows with a shorter history are not made."""
    max_history: PositiveInt = 10
    split: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.8, 0.1, 0.1)
    """Shares of train, valid and test windows, in order of time."""
    num_train: PositiveInt = 4096
    num_valid: PositiveInt = 512
    num_test: PositiveInt = 1000
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training users that are the validation rows instead of the published ones (``llara``)."""
    seed: NonNegativeInt = 0
    """Of the samples; independent of the run's seed, so that runs with other seeds see the same rows."""
    user_column: str = "user_id"
    item_column: str = "item_id"
    time_column: str = "timestamp"
    title_column: str = "title"
    genres_column: str | None = None
    rating_column: str | None = None
    """Stars, of ``task=pairs``."""
    liked_above: float = 3.0
    """Ratings above it are liked, the others disliked (``task=pairs``)."""
    min_judged: PositiveInt = 5
    """Liked and disliked titles that a user needs among the last ``max_history`` rated ones for ``task=pairs``; so many
    disliked ones are paired with one liked title."""
    answer: Literal["ranking", "yes_no"] = "ranking"
    """What a prompt of ``task=pairs`` asks for: both titles, the liked one first (DMPO), or Yes. or No. to one title
    (TALLRec)."""
    domain: str | None = None
    """Which of the data sets in a folder of ``source=dmpo``, for example ``rec_data_ml_1m``."""
    test_path: str | None = None
    """Folder, of the same source, that the test rows of ``task=pairs`` come from; None: ``path``."""
    test_domain: str | None = None
    """The ``domain`` that the test rows come from; None: ``domain``."""
    cut_titles: bool = False
    """Cut the titles of ``source=dmpo`` before the first comma or bracket, as its MovieLens training rows are, and its
    test rows are not."""
    hf_split: str = "train"
    """The split that is read of a Hugging Face dataset."""
    demo: DemoDataConfig = DemoDataConfig()

    @model_validator(mode="after")
    def _check_pairs(self) -> DataConfig:
        if self.source == "dmpo" and self.task != "pairs":
            raise ValueError("data.source=dmpo holds liked and disliked titles; set data.task=pairs")
        if self.task != "pairs" and self.answer != "ranking":
            raise ValueError(f"data.answer={self.answer} is an answer to data.task=pairs; set that, or leave it out")
        if self.task == "pairs" and self.source in {"demo", "sprec"}:
            raise ValueError(
                f"data.task=pairs needs ratings, and data.source={self.source} has none; set data.source=movielens, "
                "huggingface or dmpo"
            )
        if self.task == "pairs" and self.source == "huggingface" and self.rating_column is None:
            raise ValueError("data.task=pairs needs ratings; set data.rating_column to their column")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ScratchConfig:
    """The small Llama that stands in for a language model where none can be downloaded."""

    vocab_size: Annotated[int, Field(ge=300)] = 3000
    hidden_size: PositiveInt = 192
    num_layers: PositiveInt = 4
    num_heads: PositiveInt = 6
    num_epochs: PositiveInt = 8
    learning_rate: PositiveFloat = 2e-3
    """Peak of linear warm-up over a tenth of the steps, then linear decay."""
    global_batch_size: PositiveInt = 16
    micro_batch_size: PositiveInt = 16
    seed: NonNegativeInt = 0
    """Independent of the run's seed, so that runs with other seeds start from the same language model."""
