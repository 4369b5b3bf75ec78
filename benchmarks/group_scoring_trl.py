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
    lora_config,
    make_groups,
    make_model,
    optimizer_of,
    preference_step,
    sft_step,
    with_lora,
)
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, TrainerCallback

from sprec_ray.training.packing import TokenGroup
from sprec_ray.training.scoring import ResponseScorer

PACKED_TOKENS = 1024
"""Tokens of a row into which TRL packs several examples, about five of Goodreads."""


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
    """The fastest settings on a CPU: no checkpointing, no logging, no saving, no workers to wait for.

    The optimizer is TRL's default, torch's fused AdamW, with the numbers of ours.
    """
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": batch_size,
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.01,
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


def _dpo_trainer(groups: Sequence[TokenGroup], batch_size: int, *, precompute: bool = False, **options: Any) -> Any:
    from trl import DPOConfig, DPOTrainer

    class Tokenized(DPOTrainer):  # type: ignore[misc]
        """Takes token ids, and keeps its losses and the time of each batch of precomputed references."""

        def __init__(self, **arguments: Any) -> None:
            self.losses: list[float] = []
            self.reference_s: list[float] = []
            super().__init__(**arguments)

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def compute_loss(self, *arguments: Any, **options: Any) -> Any:
            loss = super().compute_loss(*arguments, **options)
            self.losses.append(float(loss.detach()))
            return loss

        def compute_ref_log_probs(self, *arguments: Any) -> Any:
            start = time.perf_counter()
            logps = super().compute_ref_log_probs(*arguments)
            self.reference_s.append(time.perf_counter() - start)
            return logps

    rows = [
        {
            "prompt_ids": list(group.prompt),
            "chosen_ids": list(group.responses[0]),
            "rejected_ids": list(group.responses[1]),
        }
        for group in groups
    ]
    settings = _settings(batch_size) | options
    settings.pop("shuffle_dataset")
    return Tokenized(
        model=make_model(),
        args=DPOConfig(**settings, beta=0.1, max_length=None, precompute_ref_log_probs=precompute),
        train_dataset=Dataset.from_list(rows),
        processing_class=_tokenizer(),
        peft_config=lora_config(),
    )


def trl_dpo(threads: int, *, batch_size: int, precompute: bool = False) -> dict[str, float]:
    """Examples per second of TRL's DPOTrainer; its reference is the model without the adapter, as ours.

    Where it precomputes the reference, that is counted: its batches after the first, without writing the results.
    """
    torch.set_num_threads(threads)
    trainer = _dpo_trainer(make_groups(NUM_EXAMPLES, 1), batch_size, precompute=precompute)
    rate = _train(trainer, batch_size)["examples_per_s"]
    if precompute:
        reference_s = trainer.reference_s[1:]
        rate = 1 / (1 / rate + sum(reference_s) / (len(reference_s) * batch_size))
    return {"examples_per_s": rate}


def _sft_trainer(groups: Sequence[TokenGroup], batch_size: int, *, packing: bool = False, **options: Any) -> Any:
    from trl import SFTConfig, SFTTrainer

    class Counting(SFTTrainer):  # type: ignore[misc]
        """Keeps its losses and the number of examples in each batch."""

        def __init__(self, **arguments: Any) -> None:
            self.losses: list[float] = []
            self.counts: list[int] = []
            super().__init__(**arguments)

        def compute_loss(self, model: Any, inputs: Any, **options: Any) -> Any:
            flat = inputs.get("position_ids")
            self.counts.append(len(inputs["input_ids"]) if flat is None else int((flat == 0).sum()))
            loss = super().compute_loss(model, inputs, **options)
            self.losses.append(float(loss.detach()))
            return loss

    rows = [
        {
            "input_ids": [*group.prompt, *group.responses[0]],
            "labels": [-100] * len(group.prompt) + list(group.responses[0]),
        }
        for group in groups
    ]
    settings = _settings(batch_size) | options
    if packing:
        settings |= {"packing": True, "max_length": PACKED_TOKENS}
    else:
        settings |= {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    return Counting(
        model=make_model(),
        args=SFTConfig(**settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=_tokenizer(),
        peft_config=lora_config(),
    )


def trl_sft(threads: int, *, batch_size: int, **options: bool) -> dict[str, float]:
    """Examples per second of TRL's SFTTrainer on the same rows, padded, padding-free or packed; prompts are no targets.

    A packed batch has ``batch_size`` rows of several examples each.
    """
    torch.set_num_threads(threads)
    trainer = _sft_trainer(goodreads_rows(), batch_size, **options)
    clock = _Clock()
    trainer.add_callback(clock)
    trainer.train()
    return {"examples_per_s": sum(trainer.counts[1:]) / (clock.ends[-1] - clock.ends[0])}


def first_losses(threads: int) -> dict[str, list[float]]:
    """Losses of TRL, then of ours, in the first two steps on one batch of four, from the same adapter."""
    torch.set_num_threads(threads)
    found = {}
    pairs, rows = make_groups(4, 1), goodreads_rows()[:4]
    trainers = {
        "DPO": _dpo_trainer(pairs, 4, num_train_epochs=2),
        "DPO, reference precomputed": _dpo_trainer(pairs, 4, precompute=True, num_train_epochs=2),
        "SFT": _sft_trainer(rows, 4, num_train_epochs=2),
        "SFT, padding-free": _sft_trainer(rows, 4, padding_free=True, num_train_epochs=2),
        "SFT, packed": _sft_trainer(rows, 1, packing=True, num_train_epochs=2),
    }
    for name, trainer in trainers.items():
        scorer = ResponseScorer(with_lora(make_model()), share_prompts=True)
        scorer.model.load_state_dict(trainer.model.state_dict(), strict=True)
        optimizer = optimizer_of(scorer.model)
        step, groups = (preference_step, pairs) if name.startswith("DPO") else (sft_step, rows)
        ours = [step(scorer, groups, optimizer) for _ in range(2)]
        trainer.train()
        assert len(trainer.losses) == 2, "both steps take the whole batch"
        found[name] = [*trainer.losses, *ours]
    return found
