"""TRL's trainers on the model and the tokens of benchmarks/group_scoring.py."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from group_scoring_ours import (
    NUM_EXAMPLES,
    VOCABULARY,
    goodreads_rows,
    group_logps,
    lora_config,
    make_groups,
    make_model,
    shared_logps,
)
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast, TrainerCallback

from sprec_ray.training.losses import LossSettings, preference_loss
from sprec_ray.training.packing import TokenGroup


class _Clock(TrainerCallback):  # type: ignore[misc]
    """The time from the end of the first step to the end of the last."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def _tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({f"t{token}": token for token in range(VOCABULARY)}, unk_token="t0"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="t0", bos_token="t1", eos_token="t2")


def _settings(batch_size: int) -> dict[str, Any]:
    """The fastest settings on a CPU: no checkpointing, no logging, no saving, no workers to wait for."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": batch_size,
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "gradient_checkpointing": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "shuffle_dataset": False,
    }


def _train(trainer: Any, batch_size: int) -> dict[str, float]:
    clock = _Clock()
    trainer.add_callback(clock)
    trainer.train()
    return {"examples_per_s": (len(clock.ends) - 1) * batch_size / (clock.ends[-1] - clock.ends[0])}


def _dpo_trainer(groups: Sequence[TokenGroup], batch_size: int) -> Any:
    from trl import DPOConfig, DPOTrainer

    class Tokenized(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    rows = [
        {
            "prompt_ids": list(group.prompt),
            "chosen_ids": list(group.responses[0]),
            "rejected_ids": list(group.responses[1]),
        }
        for group in groups
    ]
    settings = _settings(batch_size)
    settings.pop("shuffle_dataset")
    return Tokenized(
        model=make_model(),
        args=DPOConfig(**settings, beta=0.1, max_length=None),
        train_dataset=Dataset.from_list(rows),
        processing_class=_tokenizer(),
        peft_config=lora_config(),
    )


def trl_dpo(threads: int, *, batch_size: int) -> dict[str, float]:
    """Examples per second of TRL's DPOTrainer; its reference is the model without the adapter, as ours."""
    torch.set_num_threads(threads)
    return _train(_dpo_trainer(make_groups(NUM_EXAMPLES, 1), batch_size), batch_size)


def trl_sft(threads: int, *, batch_size: int, padding_free: bool = False) -> dict[str, float]:
    """Examples per second of TRL's SFTTrainer on the same rows; prompts are no targets."""
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(threads)
    rows = [
        {
            "input_ids": [*group.prompt, *group.responses[0]],
            "labels": [-100] * len(group.prompt) + list(group.responses[0]),
        }
        for group in goodreads_rows()
    ]
    trainer = SFTTrainer(
        model=make_model(),
        args=SFTConfig(
            **_settings(batch_size),
            max_length=None,
            padding_free=padding_free,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=_tokenizer(),
        peft_config=lora_config(),
    )
    return _train(trainer, batch_size)


def first_losses(threads: int) -> str:
    """The DPO loss of TRL and ours on one batch, under an adapter that is not zero."""
    torch.set_num_threads(threads)
    groups = make_groups(4, 1)
    trainer = _dpo_trainer(groups, 4)
    model = trainer.model
    torch.manual_seed(2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    inputs = next(iter(trainer.get_train_dataloader()))
    order = [_group_of(inputs, row, groups) for row in range(4)]
    model.train()
    theirs = float(trainer.compute_loss(model, inputs))
    with torch.no_grad(), model.disable_adapter():
        reference_BK = shared_logps(model, order)
    with torch.no_grad():
        logps = group_logps(shared_logps(model, order), reference_BK, torch.ones(4, 2, dtype=torch.long))
        loss = float(preference_loss("dpo", logps, LossSettings(beta=0.1)).mean())
    return f"{theirs:.6f} and {loss:.6f}"


def _group_of(inputs: dict[str, Tensor], row: int, groups: Sequence[TokenGroup]) -> TokenGroup:
    tokens = inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()
    return next(group for group in groups if [*group.prompt, *group.responses[0]] == tokens)
