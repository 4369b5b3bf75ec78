from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from sprec_ray.models.quantization import quantized_loading, require

CPU = torch.device("cpu")


def test_without_quantization_loading_is_told_nothing() -> None:
    assert quantized_loading("none", dtype=torch.bfloat16, device=CPU) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nf4_is_double_quantised_and_computes_in_the_models_dtype(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    options = quantized_loading("nf4", dtype=dtype, device=CPU)
    config = options["quantization_config"]
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert config.bnb_4bit_compute_dtype == dtype
    assert options["device_map"] == {"": CPU}
    assert options.keys() - quantized_loading("nf4", dtype=dtype, device=None).keys() == {"device_map"}


def test_a_missing_library_is_named_with_the_way_to_install_it() -> None:
    with pytest.raises(ValueError, match=r"^model.quantization=nf4 needs not-there; .*pip install 'sprec-ray\[cuda\]'"):
        require("not_there")
