from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_training import LORA, TinyPolicy, plain_policy

from sprec_ray.config import LoraConfig
from sprec_ray.training.adapters import (
    adapter_parameters,
    attach_adapter,
    load_language_model,
    read_adapter,
    set_adapter,
    without_adapter,
    write_adapter,
)

IDS = torch.tensor([[0, 50, 61, 72, 83, 94]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


def attached(path: str, *, lora: LoraConfig = LORA, dtype: str = "float32", seed: int = 0) -> Any:
    return attach_adapter(load_language_model(path, dtype=dtype), lora, dropout=0.0, seed=seed)


def test_a_fresh_adapter_changes_nothing(tiny_policy: TinyPolicy) -> None:
    assert torch.equal(logits(attached(tiny_policy.path)), logits(plain_policy(tiny_policy.path, None)))


def test_a_fresh_adapter_depends_on_its_seed_only(tiny_policy: TinyPolicy) -> None:
    first, again, other = (adapter_parameters(attached(tiny_policy.path, seed=seed)) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_only_the_adapter_is_trainable(tiny_policy: TinyPolicy) -> None:
    model = attached(tiny_policy.path)
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(trainable) == len(adapter_parameters(model)) == 2 * 2 * len(LORA.target_modules)
    assert all("lora_" in name for name in trainable)


def test_rank_and_alpha_are_those_of_the_configuration(tiny_policy: TinyPolicy) -> None:
    """The update is alpha / rank * B A: with A and B all ones it maps ones of size 32 to alpha / 2 * 2 * 32."""
    model = attached(tiny_policy.path, lora=LoraConfig(rank=2, alpha=6, dropout=0.0, target_modules=("q_proj",)))
    with torch.no_grad():
        for weight in adapter_parameters(model).values():
            weight.fill_(1.0)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    ones = torch.ones(1, 32)
    change = layer(ones) - layer.base_layer(ones)
    torch.testing.assert_close(change, torch.full((1, 32), 64 * 6 / 2))


def test_written_adapter_is_a_peft_folder(tiny_policy: TinyPolicy, tmp_path: Path) -> None:
    model = attached(tiny_policy.path)
    set_adapter(model, read_adapter(tiny_policy.adapters[0]))
    write_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(load_language_model(tiny_policy.path, dtype="float32"), str(tmp_path))
    expected = logits(plain_policy(tiny_policy.path, tiny_policy.adapters[0]))
    assert torch.equal(logits(loaded), expected)
    assert torch.equal(logits(model), expected)
    assert not torch.allclose(expected, logits(plain_policy(tiny_policy.path, None)), atol=1e-2)


def test_adapter_round_trips(tiny_policy: TinyPolicy, tmp_path: Path) -> None:
    model = attached(tiny_policy.path)
    weights = read_adapter(tiny_policy.adapters[1])
    set_adapter(model, weights)
    write_adapter(model, tmp_path)
    again = read_adapter(str(tmp_path))
    assert again.keys() == weights.keys() == adapter_parameters(model).keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_an_adapter_of_other_modules_is_refused(tiny_policy: TinyPolicy) -> None:
    model = attached(tiny_policy.path, lora=LoraConfig(rank=4, alpha=8, target_modules=("q_proj", "v_proj")))
    with pytest.raises(ValueError, match=r"does not fit the model: 20 weights differ, the first is .*down_proj"):
        set_adapter(model, read_adapter(tiny_policy.adapters[0]))


def test_an_adapter_with_a_missing_weight_is_refused_and_changes_nothing(tiny_policy: TinyPolicy) -> None:
    model = attached(tiny_policy.path)
    before = logits(model)
    weights = read_adapter(tiny_policy.adapters[0])
    name, _ = weights.popitem()
    with pytest.raises(ValueError, match=f"1 weights differ, the first is {name}"):
        set_adapter(model, weights)
    assert torch.equal(logits(model), before)


def test_an_adapter_of_another_rank_is_refused(tiny_policy: TinyPolicy) -> None:
    model = attached(tiny_policy.path, lora=LoraConfig(rank=8, alpha=8))
    before = logits(model)
    with pytest.raises(ValueError, match=r"does not fit the model: .* has shape \[4, 32\], the model's is \[8, 32\]"):
        set_adapter(model, read_adapter(tiny_policy.adapters[0]))
    assert torch.equal(logits(model), before)


def test_a_weight_of_one_row_is_not_broadcast(tiny_policy: TinyPolicy) -> None:
    """``Tensor.copy_`` broadcasts: a rank 1 adapter would silently fill an adapter of rank 4."""
    weights = {name: weight[:1] for name, weight in read_adapter(tiny_policy.adapters[0]).items()}
    with pytest.raises(ValueError, match="does not fit the model"):
        set_adapter(attached(tiny_policy.path), weights)


def test_unknown_target_modules_are_named(tiny_policy: TinyPolicy) -> None:
    lora = LoraConfig(target_modules=("q_proj", "query", "c_attn"))
    with pytest.raises(ValueError, match=r"model\.lora\.target_modules: the model has no module named query, c_attn"):
        attached(tiny_policy.path, lora=lora)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors does not exist; an adapter is a PEFT folder"):
        read_adapter(str(tmp_path))


def test_adapter_of_a_bfloat16_model_is_float32(tiny_policy: TinyPolicy, tmp_path: Path) -> None:
    model = attached(tiny_policy.path, dtype="bfloat16")
    assert {weight.dtype for weight in adapter_parameters(model).values()} == {torch.float32}
    assert {w.dtype for name, w in model.named_parameters() if "lora_" not in name} == {torch.bfloat16}
    set_adapter(model, read_adapter(tiny_policy.adapters[0]))
    write_adapter(model, tmp_path)
    weights, again = read_adapter(tiny_policy.adapters[0]), read_adapter(str(tmp_path))
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_without_adapter_is_the_base_model_inside_the_block_only(tiny_policy: TinyPolicy) -> None:
    model = attached(tiny_policy.path)
    set_adapter(model, read_adapter(tiny_policy.adapters[0]))
    with_adapter = logits(model)
    with without_adapter(model):
        assert torch.equal(logits(model), logits(plain_policy(tiny_policy.path, None)))
    assert torch.equal(logits(model), with_adapter)
