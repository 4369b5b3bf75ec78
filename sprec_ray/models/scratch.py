"""The small Llama that stands in for a language model where none can be downloaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sprec_ray.config.data import ScratchConfig

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"


def write_untrained_model(out: Path, texts: Iterable[str], scratch: ScratchConfig, *, max_positions: int) -> None:
    """Write a byte-level BPE learned on ``texts`` and a randomly initialised Llama to the folder ``out``."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=scratch.vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=PAD)
    torch.manual_seed(scratch.seed)
    config = llama_config(
        scratch,
        vocab_size=len(tokenizer),
        max_positions=max_positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)


def llama_config(scratch: ScratchConfig, *, vocab_size: int, max_positions: int, **token_ids: int) -> LlamaConfig:
    """The small Llama's configuration for transformers; ``token_ids`` are those of BOS, EOS and PAD."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=scratch.hidden_size,
        intermediate_size=scratch.hidden_size * 8 // 3 // 32 * 32,
        num_hidden_layers=scratch.num_layers,
        num_attention_heads=scratch.num_heads,
        num_key_value_heads=scratch.num_heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        **token_ids,
    )
