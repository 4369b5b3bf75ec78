from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from sprec_ray.training.packing import TokenGroup
from sprec_ray.training.reference_cache import cache_key, read_references, write_references
from tests.training.tiny_training import TinyPolicy, make_groups

GROUPS = make_groups(4, num_rejected=(1, 3))
LOGPS = [torch.arange(len(group.responses)) - 5.5 for group in GROUPS]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_references(tmp_path / "cache" / "key.safetensors", LOGPS)
    return tmp_path / "cache" / "key.safetensors"


def test_references_come_back_as_they_were(file: Path) -> None:
    for found, expected in zip(read_references(file, GROUPS), LOGPS, strict=True):
        assert torch.equal(found, expected)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_value_that_is_not_a_number_is_refused(file: Path) -> None:
    content = load_file(file)
    content["reference_logps_BK"][3, 1] = torch.nan
    save_file(content, file)
    with pytest.raises(
        ValueError, match=r"key.safetensors holds .* that is not a number \(group 3\); delete it and run"
    ):
        read_references(file, GROUPS)


def test_a_damaged_file_is_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"key.safetensors is damaged .*; delete it and run the same command again"):
        read_references(file, GROUPS)


def test_references_of_other_groups_are_refused(file: Path) -> None:
    with pytest.raises(ValueError, match=r"holds \(4, 4\) log-probabilities of other groups"):
        read_references(file, GROUPS[:3])


def test_the_key_tells_apart_all_that_changes_a_number(tiny_policy: TinyPolicy, tmp_path: Path) -> None:
    first, second = tiny_policy.adapters
    config = AutoConfig.from_pretrained(tiny_policy.path)
    longer = dataclasses.replace(GROUPS[0], prompt=(*GROUPS[0].prompt, 9))
    moved = dataclasses.replace(
        GROUPS[0],
        prompt=GROUPS[0].prompt[:-1],
        responses=tuple((GROUPS[0].prompt[-1], *response) for response in GROUPS[0].responses),
    )
    model = tmp_path / "model"
    shutil.copytree(tiny_policy.path, model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    keys = [
        cache_key(config, first, GROUPS, ["float32"]),
        cache_key(config, second, GROUPS, ["float32"]),
        cache_key(config, None, GROUPS, ["float32"]),
        cache_key(config, first, GROUPS, ["bfloat16"]),
        cache_key(config, first, GROUPS[::-1], ["float32"]),
        cache_key(config, first, [longer, *GROUPS[1:]], ["float32"]),
        cache_key(config, first, [moved, *GROUPS[1:]], ["float32"]),
        cache_key(AutoConfig.from_pretrained(model), first, GROUPS, ["float32"]),
    ]
    assert len(set(keys)) == len(keys)


def test_the_key_forgets_where_things_lie_and_what_no_number_depends_on(
    tiny_policy: TinyPolicy, tmp_path: Path
) -> None:
    """Copies of model and adapter elsewhere are the same policy; smoothing belongs to the loss."""
    shutil.copytree(tiny_policy.path, tmp_path / "model")
    shutil.copytree(tiny_policy.adapters[0], tmp_path / "adapter")
    smoothed = [dataclasses.replace(group, smoothing=0.1) for group in GROUPS]
    assert cache_key(AutoConfig.from_pretrained(tiny_policy.path), tiny_policy.adapters[0], GROUPS, []) == cache_key(
        AutoConfig.from_pretrained(tmp_path / "model"), str(tmp_path / "adapter"), smoothed, []
    )


def test_a_file_written_anew_at_the_same_path_is_read_anew(tiny_policy: TinyPolicy, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_policy.path)
    keys = []
    for adapter in tiny_policy.adapters:
        shutil.copytree(adapter, tmp_path / "adapter", dirs_exist_ok=True)
        os.utime(tmp_path / "adapter" / "adapter_model.safetensors", ns=(len(keys), len(keys)))
        keys.append(cache_key(config, str(tmp_path / "adapter"), [TokenGroup((1,), ((2,),))], []))
    assert keys[0] != keys[1]
