from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from sprec_ray.config.data import ScratchConfig
from sprec_ray.config.run import LoraConfig
from sprec_ray.models import quantization
from sprec_ray.models.adapters import (
    adapter_parameters,
    attach_adapter,
    load_language_model,
    read_adapter,
    set_adapter,
    without_adapter,
    write_adapter,
)
from sprec_ray.models.scratch import write_untrained_model
from sprec_ray.training.scoring import make_scorer
from tests.training.tiny_training import LORA, TITLES, TinyPolicy, make_groups, plain_policy

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


def test_what_from_pretrained_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []

    def from_pretrained(path: str, **options: Any) -> Any:
        told.append(options)
        return SimpleNamespace(config=None)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setattr(quantization, "require", lambda module: None)
    device = torch.device("cuda", 3)
    load_language_model("folder", dtype="bfloat16")
    load_language_model("folder", dtype="bfloat16", quantization="none", device=device)
    load_language_model("folder", dtype="bfloat16", quantization="nf4", device=device)
    plain = {"dtype": torch.bfloat16, "use_safetensors": True, "trust_remote_code": False}
    assert told[:2] == [plain, plain]  # an engine moves what is not quantised
    assert told[2].pop("quantization_config").bnb_4bit_compute_dtype == torch.bfloat16
    assert told[2] == {**plain, "device_map": {"": device}}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_on_4_bit_weights_trains_as_on_their_values(tmp_path: Path, checkpointing: bool) -> None:
    """NF4 is a way to store weights: a float model that holds the dequantised values gives the same gradients.

    The relative error of NF4 in blocks of 64 is 0.09 for normally distributed weights. All widths are multiples of 64:
    bitsandbytes 0.50.2 reads rows of another width wrongly on a CPU.
    """
    bitsandbytes = pytest.importorskip("bitsandbytes")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scratch = ScratchConfig(vocab_size=300, hidden_size=192, num_layers=2, num_heads=6)
    write_untrained_model(tmp_path, TITLES * 20, scratch, max_positions=64)
    quantised = load_language_model(str(tmp_path), dtype="float32", quantization="nf4", device=device).train()
    values = load_language_model(str(tmp_path), dtype="float32").to(device).train()
    layers = {name: layer for name, layer in quantised.named_modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)}
    assert len(layers) == 2 * len(LORA.target_modules)  # and so not the LM head
    with torch.no_grad():
        for name, layer in layers.items():
            weight = values.get_submodule(name).weight
            stored = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            assert float((stored - weight).norm() / weight.norm()) == pytest.approx(0.09, abs=0.01)
            weight.copy_(stored)
    groups = make_groups(6, num_rejected=(0, 2))
    results = []
    for base in (quantised, values):
        model = attach_adapter(base, LORA, dropout=0.0, seed=0)
        parameters = adapter_parameters(model)
        assert {weight.dtype for weight in parameters.values()} == {torch.float32}
        with torch.no_grad():
            for weight in parameters.values():
                weight.normal_(std=0.1)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        scorer = make_scorer(model.eval(), groups).to(device)  # what DeepSpeed does with a model it is given
        assert scorer.share_prompts
        logps_BK = scorer.train()(scorer.batch(groups, device))
        (-logps_BK.sum()).backward()
        results.append({"logps": logps_BK.detach()} | {name: weight.grad for name, weight in parameters.items()})
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_gemma_2_is_loaded_with_an_attention_that_caps_its_scores(tmp_path: Path) -> None:
    """transformers' default attention leaves the cap out, and so scores other log-probabilities than vLLM."""
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        head_dim=16,
        num_key_value_heads=1,
        attn_logit_softcapping=0.1,
        query_pre_attn_scalar=1,
        initializer_range=1.0,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        loaded = load_language_model(str(tmp_path), dtype="float32")(input_ids=ids).logits
        default = Gemma2ForCausalLM.from_pretrained(tmp_path)(input_ids=ids).logits
        eager = Gemma2ForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")(input_ids=ids).logits
    assert torch.equal(loaded, eager)
    assert float((loaded - default).abs().max()) > 0.1
