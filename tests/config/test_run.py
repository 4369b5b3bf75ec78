from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from sprec_ray.config.load import config_to_dict, flatten, load_config, make_config
from sprec_ray.config.run import ConfigError, RunConfig

NF4 = ["model.quantization=nf4", "training.gpus_per_worker=0.49", "decoding.gpus_per_decoder=0.51"]


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def message(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_without_arguments_the_defaults_apply() -> None:
    assert load_config([]) == RunConfig() == make_config({})


def test_files_override_defaults_and_later_files_earlier_ones(tmp_path: Path) -> None:
    first = write(tmp_path, "first.yaml", "name: first\nsft:\n  num_epochs: 7\n  micro_batch_size: 8\n")
    second = write(tmp_path, "second.yml", "sft:\n  num_epochs: 9\n")
    config = load_config([first, second])
    assert (config.name, config.sft.num_epochs, config.sft.micro_batch_size) == ("first", 9, 8)
    assert load_config([second, first]).sft.num_epochs == 7
    assert config.sft.global_batch_size == RunConfig().sft.global_batch_size


def test_overrides_win_over_files_and_reach_nested_sections(tmp_path: Path) -> None:
    file = write(tmp_path, "run.yaml", "model:\n  lora:\n    rank: 8\n    alpha: 4\n")
    config = load_config([file, "model.lora.rank=32", "seed=3", "model.lora.rank=64"])
    assert (config.model.lora.rank, config.model.lora.alpha, config.seed) == (64, 4, 3)


DMPO = ("data.source=dmpo", "data.task=pairs", "data.path=x", "selfplay.negatives=random")
HUGGINGFACE_PAIRS = ("data.source=huggingface", "data.task=pairs", "data.path=x")


@pytest.mark.parametrize("text", ["2e-5", "2E-5", "0.00002", "2.0e-5"])
def test_exponents_are_numbers_on_the_command_line_and_in_files(tmp_path: Path, text: str) -> None:
    """YAML 1.1 reads 2e-5, which has no point, as text."""
    file = write(tmp_path, "run.yaml", f"preference:\n  learning_rate: {text}\n")
    assert load_config([file]).preference.learning_rate == 2e-5
    assert load_config([f"preference.learning_rate={text}"]).preference.learning_rate == 2e-5


def test_override_values_are_yaml() -> None:
    config = load_config(
        ["selfplay.sft=false", "evaluation.k=[1, 10]", "data.split=[0.5, 0.25, 0.25]", "data.genres_column=null"]
    )
    assert config.selfplay.sft is False
    assert config.evaluation.k == (1, 10)
    assert config.data.split == (0.5, 0.25, 0.25)
    assert config.data.genres_column is None


def test_values_may_hold_equals_signs() -> None:
    assert load_config(["data.path=/data/a=b.yaml"]).data.path == "/data/a=b.yaml"


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load_config([write(tmp_path, "empty.yaml", "# nothing yet\n")]) == RunConfig()


@pytest.mark.parametrize(
    ("argument", "key", "suggestion"),
    [
        ("sed=1", "sed", "did you mean seed?"),
        ("prefrence.beta=1", "prefrence", "did you mean preference?"),
        ("preference.betta=1", "preference.betta", "did you mean preference.beta?"),
        ("model.lora.rnk=1", "model.lora.rnk", "did you mean model.lora.rank?"),
        ("preference.zzzzz=1", "preference.zzzzz", "known: loss, beta, reference"),
    ],
)
def test_an_unknown_key_is_named_with_a_suggestion(argument: str, key: str, suggestion: str) -> None:
    text = message(argument)
    assert text.startswith(f"{key}: unknown key; ")
    assert suggestion in text


def test_an_unknown_key_of_a_file_is_named(tmp_path: Path) -> None:
    assert message(write(tmp_path, "run.yaml", "sft:\n  epochs: 3\n")) == (
        "sft.epochs: unknown key; did you mean sft.num_epochs?"
    )


@pytest.mark.parametrize(
    ("argument", "start"),
    [
        ("preference.beta=-0.1", "preference.beta=-0.1: input should be greater than 0"),
        ("preference.beta=0", "preference.beta=0: input should be greater than 0"),
        ("preference.beta=.inf", "preference.beta=inf: input should be a finite number"),
        ("preference.learning_rate=fast", "preference.learning_rate='fast': input should be a valid number"),
        (
            "preference.loss=dp0",
            "preference.loss='dp0': input should be 'dpo', 'softmax_dpo', 'dmpo', 'dmpo_pairs'",
        ),
        ("selfplay.random_ratio=1.5", "selfplay.random_ratio=1.5: input should be less than or equal to 1"),
        ("sft.num_epochs=2.5", "sft.num_epochs=2.5: input should be a valid integer"),
        ("training.zero_stage=4", "training.zero_stage=4: input should be 0, 1, 2 or 3"),
        ("seed=-1", "seed=-1: input should be greater than or equal to 0"),
        ("evaluation.k=[1,0]", "evaluation.k.1=0: input should be greater than 0"),
    ],
)
def test_a_value_out_of_range_is_named(argument: str, start: str) -> None:
    assert message(argument).startswith(start)


def test_a_section_given_a_value_says_how_to_write_it(tmp_path: Path) -> None:
    file = write(tmp_path, "run.yaml", "sft:\n  num_epochs: 2\n")
    assert message(file, "sft=3") == "sft=3: sft is a section; write sft.<key>=value"
    assert message("sft=3").startswith("sft=3: ")
    assert message("model.lora=16").startswith("model.lora=16: ")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["selfplay.num_negatives=3"], ("selfplay.num_negatives=3", "preference.loss=softmax_dpo")),
        (["data.source=movielens"], ("data.source=movielens", "data.path=FOLDER")),
        (["data.task=pairs"], ("data.task=pairs needs ratings", "data.source=movielens, huggingface or dmpo")),
        (["data.source=dmpo", "data.path=x"], ("data.source=dmpo", "set data.task=pairs")),
        ([*HUGGINGFACE_PAIRS], ("set data.rating_column",)),
        ([*DMPO, "selfplay.num_iterations=2"], ("selfplay.num_iterations=2", "preference.num_epochs")),
        (["data.answer=yes_no"], ("data.answer=yes_no", "set that, or leave it out")),
        ([*DMPO, "data.answer=yes_no", "selfplay.num_iterations=1"], ("data.answer=yes_no", "SFT only")),
        ([*DMPO, "selfplay.num_iterations=1", "sft.weighting=genre"], ("sft.weighting=genre has no effect",)),
        ([*DMPO, "selfplay.num_iterations=1", "selfplay.negatives=beam"], ("set selfplay.negatives=random",)),
        (["data.split=[0.8,0.1,0.2]"], ("data.split=[0.8, 0.1, 0.2]", "must sum to 1")),
        (["data.min_history=11"], ("data.min_history", "data.max_history")),
        (["name=a/b"], ("name='a/b'", "single folder name")),
        (["name=''"], ("name=''", "single folder name")),
        (["training.num_workers=3"], ("sft.global_batch_size=64", "multiple of training.num_workers=3")),
        (
            ["training.num_workers=2", "preference.global_batch_size=9"],
            ("preference.global_batch_size=9", "training.num_workers=2"),
        ),
        (["model.scratch.hidden_size=100"], ("model.scratch.hidden_size", "model.scratch.num_heads")),
        (["model.quantization=nf4"], ("training.gpus_per_worker", "decoding.gpus_per_decoder", "=none")),
        (["model.quantization=nf4", "training.gpus_per_worker=1"], ("decoding.gpus_per_decoder above 0",)),
        (
            [*NF4, "training.zero_stage=3"],
            ("model.quantization=nf4", "training.zero_stage=3", "set training.zero_stage=2"),
        ),
    ],
)
def test_sections_that_contradict_each_other_are_refused(arguments: list[str], parts: tuple[str, ...]) -> None:
    text = message(*arguments)
    assert all(part in text for part in parts), text


def test_nf4_takes_the_other_zero_stages() -> None:
    for stage in (0, 1, 2):
        assert load_config([*NF4, f"training.zero_stage={stage}"]).model.quantization == "nf4"


def test_softmax_dpo_takes_many_negatives() -> None:
    config = load_config(["selfplay.num_negatives=7", "preference.loss=softmax_dpo"])
    assert config.selfplay.num_negatives == 7


def test_a_missing_file_is_named() -> None:
    assert message("configs/none.yaml").startswith("configs/none.yaml: no such configuration file")


def test_an_argument_that_is_neither_a_file_nor_an_override_is_named() -> None:
    assert message("--help").startswith("--help: no such configuration file")


def test_a_file_that_is_not_yaml_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, "run.yaml", "sft: [1, 2\n")
    assert message(file).startswith(f"{file}: not valid YAML")


def test_a_file_without_sections_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, "run.yaml", "- sft\n- dpo\n")
    assert message(file) == f"{file}: expected sections with keys, found list"


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().seed = 3  # type: ignore[misc]


def test_a_configuration_comes_back_from_plain_values() -> None:
    """Through YAML, as it is kept in a run's folder."""
    config = load_config(
        ["data.source=movielens", "data.path=x", "evaluation.k=[1,3]", "model.lora.target_modules=[q_proj]", "seed=9"]
    )
    values: dict[str, Any] = yaml.safe_load(yaml.safe_dump(config_to_dict(config)))
    assert make_config(values) == config


def test_flat_keys_are_overrides() -> None:
    assert flatten({"a": 1, "b": {"c": [2], "d": {"e": None}}}) == {"a": 1, "b.c": [2], "b.d.e": None}
    config = load_config(["preference.beta=0.25", "model.lora.rank=4", "data.path=x"])
    flat = flatten(config_to_dict(config))
    assert flat["model.lora.rank"] == 4
    assert (
        load_config([f"{key}={yaml.safe_dump(value).removesuffix('...' + chr(10))}" for key, value in flat.items()])
        == config
    )


def test_overriding_one_key_of_a_section_leaves_the_others_at_their_defaults() -> None:
    """``selfplay_sft`` has other defaults than ``sft``; a partial section must not fall back to those of ``sft``."""
    default = flatten(config_to_dict(RunConfig()))
    needs_more = {"data.source", "preference.reference", "selfplay.num_negatives", "data.split"}
    for key, value in default.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and key not in needs_more:
            changed = flatten(config_to_dict(load_config([f"{key}={value}"])))
            assert changed == default, key


def test_a_name_that_yaml_reads_as_a_number_is_a_name() -> None:
    assert load_config(["name=2024"]).name == "2024"


@pytest.mark.parametrize("override", ["name=..", "name=cache", "evaluation.k=[]", "model.lora.target_modules=[]"])
def test_values_that_cannot_run_are_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=override.split("=")[0].split(".")[-1]):
        load_config([override])


@pytest.mark.parametrize(
    "arguments",
    [
        ["decoding.engine=transformers", "decoding.gpus_per_decoder=1"],
        ["decoding.engine=vllm"],
        ["decoding.gpus_per_decoder=0.5"],
        ["decoding.gpus_per_decoder=2"],
    ],
)
def test_tensor_parallel_decoding_needs_vllm_on_whole_gpus(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"decoding.tensor_parallel_size=2 needs vLLM on 2 whole GPUs[^\n]*$"):
        load_config([*arguments, "decoding.tensor_parallel_size=2"])


def test_a_tensor_parallel_decoder_shares_no_gpu() -> None:
    arguments = ["decoding.tensor_parallel_size=2", "decoding.gpus_per_decoder=1"]
    assert load_config(arguments).decoding.reserved_gpus == 2
    assert load_config([*arguments, "decoding.placement=sequential"]).decoding.reserved_gpus == 2
    with pytest.raises(ConfigError, match=r"set decoding.placement=sequential or split[^\n]*$"):
        load_config([*arguments, "decoding.placement=colocate"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["preference.oracle=true"], "preference.oracle=true has an effect only with preference.loss=rosepo"),
        (["preference.label_smoothing=0.1"], "preference.label_smoothing has an effect only with"),
        (["preference.margin=1"], "preference.margin has an effect only with preference.loss=simpo"),
        (["evaluation.gamma=2"], "evaluation.gamma has an effect only with evaluation.adjustment"),
        (["evaluation.gamma=valid"], "evaluation.gamma has an effect only with evaluation.adjustment"),
        (["selfplay.random_ratio=0.5", "selfplay.negatives=similar"], "selfplay.random_ratio has an effect only with"),
        (["selfplay.exclude_history=true", "selfplay.negatives=random"], "selfplay.exclude_history has an effect only"),
        (["preference.loss=rosepo", "preference.oracle=true", "preference.label_smoothing=0.1"], "smooths each pair"),
        (["evaluation.adjustment=collaborative", "collaborative.model=random"], "collaborative.model=random has no"),
    ],
)
def test_settings_without_effect_are_refused(arguments: list[str], expected: str) -> None:
    assert expected in message(*arguments)


CANDIDATES = ["data.task=candidates", "selfplay.negatives=random", "preference.loss=softmax_dpo"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([*CANDIDATES, "selfplay.num_negatives=20"], "exceeds the 19 candidates that random negatives can be drawn"),
        (
            [*CANDIDATES, "selfplay.negatives=beam", "selfplay.num_negatives=19", "selfplay.random_ratio=0.5"],
            "exceeds the 18 candidates that random negatives can be drawn from; lower it",
        ),
        ([*CANDIDATES, "data.num_candidates=4", "evaluation.k=[1,5]"], "evaluation.k=5 exceeds data.num_candidates=4"),
        ([*CANDIDATES, "data.num_candidates=1"], "data.num_candidates"),
    ],
)
def test_candidates_must_suffice(arguments: list[str], expected: str) -> None:
    assert expected in message(*arguments)


def test_the_answers_of_a_choice_need_no_grounding() -> None:
    assert load_config([*CANDIDATES, "selfplay.num_negatives=19", "decoding.search=free"]).decoding.search == "free"
