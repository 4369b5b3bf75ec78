"""The settings of the papers and their published code, and where a configuration differs from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PAPER_SETTINGS: dict[str, Any] = {
    "data.template": "alpaca",
    "data.min_interactions": 10,
    "data.max_history": 10,
    "data.split": [0.8, 0.1, 0.1],
    "data.num_train": 4096,
    "data.num_valid": 512,
    "data.num_test": 1000,
    "model.name_or_path": "meta-llama/Llama-3.2-1B-Instruct",
    "model.dtype": "bfloat16",
    "model.lora.rank": 16,
    "model.lora.alpha": 32,
    "model.lora.dropout": 0.05,
    "model.lora.target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "training.num_workers": 4,
    "training.max_grad_norm": 1.0,
    "sft.learning_rate": 3e-4,
    "sft.num_epochs": 4,
    "sft.global_batch_size": 64,
    "sft.micro_batch_size": 4,
    "sft.num_warmup_steps": 20,
    "selfplay_sft.learning_rate": 2e-5,
    "selfplay_sft.num_epochs": 1,
    "selfplay_sft.global_batch_size": 64,
    "selfplay_sft.micro_batch_size": 4,
    "selfplay_sft.num_warmup_steps": 20,
    "preference.loss": "dpo",
    "preference.beta": 0.1,
    "preference.reference": "pre_sft",  # equation 7; the published code measures against the policy after SFT
    "preference.learning_rate": 2e-5,
    "preference.num_epochs": 1,
    "preference.global_batch_size": 32,
    "preference.micro_batch_size": 2,
    "preference.num_warmup_steps": 20,
    "decoding.search": "free",
    "selfplay.num_iterations": 5,
    "selfplay.num_examples": 2048,
    "selfplay.num_negatives": 1,
    "selfplay.negatives": "beam",
    "selfplay.random_ratio": 0.0,
    "selfplay.sft": True,
    "selfplay.preference": True,
    "evaluation.grounding": "sentence",
    "evaluation.sentence_model": "sentence-transformers/paraphrase-MiniLM-L3-v2",
    "evaluation.num_genres": 10,
}
"""Dotted keys of RunConfig with the paper's values; where the paper is silent, the published code's.

Keys that are absent have no counterpart there (engines, placement, seeds, the dataset).
"""

PAPER_NOTES: tuple[str, ...] = (
    "The paper's equation 7 measures rewards against the policy before the iteration's SFT (pre_sft); its published "
    "code measures them against the policy after it (post_sft).",
    "The published code loads the base model in 4 bits (here only with model.quantization=nf4), limits prompt and "
    "response together to 512 tokens, and leaves the end-of-sequence token out of the SFT loss; here the limits are "
    "apart and the token is a target.",
    "The published code computes DivRatio, ORRatio and the recommended genres without the rows whose target is not in "
    "the catalogue; here every metric counts every row.",
)
"""Differences that PAPER_SETTINGS does not express."""


PAIR_SETTINGS: dict[str, Any] = {
    "data.template": "alpaca",
    "data.max_history": 40,
    "data.liked_above": 3.0,
    "data.min_judged": 5,
    "data.num_train": 100,
    "data.num_valid": 100,
    "data.num_test": 1000,
    "model.name_or_path": "meta-llama/Llama-2-7b-chat-hf",
    "model.lora.target_modules": ["q_proj", "k_proj", "v_proj"],  # the published script trains all modules
    "sft.learning_rate": 1e-4,
    "sft.num_epochs": 5,
    "sft.global_batch_size": 8,
    "preference.loss": "dmpo",
    "preference.learning_rate": 1e-4,
    "preference.num_epochs": 3,
    "preference.global_batch_size": 8,
}
"""The same of DMPO (arXiv 2405.16127, section 5; batch, epochs and learning rates of its published script)."""

PAIR_NOTES: tuple[str, ...] = (
    "The paper writes the loss of eq. 3 (dmpo); its published code trains pair by pair, without a reference and with "
    "the chosen answer's likelihood (dmpo_pairs).",
    "The published notebook draws one ordering of every row by a coin and ranks summed log-probabilities; here both "
    "orderings of every row are pooled, by the mean token probability of the paper's text and two other scores.",
    "The learning rate falls by a cosine there, linearly here.",
)
"""What PAIR_SETTINGS does not express."""


def paper_notes(flat_config: Mapping[str, Any]) -> tuple[str, ...]:
    """The notes of the paper whose task a configuration has."""
    return PAIR_NOTES if flat_config.get("data.task") == "pairs" else PAPER_NOTES


def differences_from_paper(flat_config: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted key, our value, the paper's value) for every setting that differs, in the paper's order.

    The paper is DMPO's where ``data.task`` is pairs, else SPRec's.
    ``flat_config`` is ``flatten(config_to_dict(config))`` of ``config.load``; keys it lacks are not compared.

    >>> differences_from_paper({"preference.beta": 1.0, "sft.num_epochs": 4})
    [('preference.beta', 1.0, 0.1)]
    """
    settings = PAIR_SETTINGS if flat_config.get("data.task") == "pairs" else PAPER_SETTINGS
    return [
        (key, flat_config[key], paper)
        for key, paper in settings.items()
        if key in flat_config and _plain(flat_config[key]) != _plain(paper)
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
