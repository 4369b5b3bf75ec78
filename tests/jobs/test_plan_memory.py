from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig

from jobs import plan_memory
from sprec_ray.config.run import ConfigError


@pytest.mark.slow
def test_the_planner_prints_sft_and_every_number_of_negatives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two layers of Llama-3.2-1B's shape: (128256 * 2048 + 2 * 60.8 M) * 2 bytes are 0.72 GiB, the adapter 5 MiB."""
    LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=2,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    ).save_pretrained(tmp_path)
    arguments = [
        f"model.name_or_path={tmp_path}",
        "model.dtype=bfloat16",
        "model.lora.dropout=0",
        "num_negatives=1,10",
        "gpu_memory_gib=4",
    ]
    plan_memory.main(arguments)
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [(row[0], row[1], row[2]) for row in rows[1:]] == [
        ("SFT", "0", "0.72"),
        ("preference", "1", "0.72"),
        ("preference", "10", "0.72"),
    ]
    assert [int(row[-1]) for row in rows[1:]] == [64, 32, 32]  # the default global batches
    assert 64 > int(rows[1][-2]) > int(rows[2][-2]) > int(rows[3][-2]) > 1
    plan_memory.main([*arguments[:-2], "gpu_memory_gib=1"])
    assert "| none |" in capsys.readouterr().out


def test_the_planner_knows_the_small_llama(capsys: pytest.CaptureFixture[str]) -> None:
    plan_memory.main(["configs/demo.yaml"])
    assert capsys.readouterr().out.startswith("scratch, float32")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("gpu_memory_gib=much", "gpu_memory_gib=much must be numbers above 0, such as gpu_memory_gib=24"),
        ("num_negatives=1,0", "num_negatives=1,0 must be numbers above 0, such as num_negatives=1,5,10"),
        ("model.name_or_path=/nowhere", "model.name_or_path=/nowhere could not be read"),
    ],
)
def test_a_wrong_argument_is_one_sentence(argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_memory.main(["configs/demo.yaml", argument])
