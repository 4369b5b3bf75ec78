"""A tiny Llama with a byte-level BPE, and two LoRA adapters for it: the smallest thing every engine can host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sprec_ray.types import AdapterCheckpoint

TITLES = ("Dune", "Emma", "Ulysses", "The Hobbit", 'A Child Called "It"', "Les Misérables", "1984", "Émile")
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class TinyModel:
    path: str
    tokenizer: PreTrainedTokenizerFast
    adapters: tuple[AdapterCheckpoint, AdapterCheckpoint]
    prompts: tuple[tuple[int, ...], ...]


def build_tiny_model(folder: Path, *, tied: bool = False) -> TinyModel:
    trained = ByteLevelBPETokenizer()
    lines = [f'History:\n"{title}"\nNext book:\n"{title}"\n' for title in TITLES]
    trained.train_from_iterator(lines, vocab_size=300, min_frequency=1, special_tokens=["<s>", "</s>", "<pad>"])
    trained.save(str(folder / "bpe.json"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "bpe.json"), bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    path = folder / "model"
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # peaked, so that float noise between engines cannot swap beams
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(6.0)
        model.get_output_embeddings().weight.mul_(3.0)
        model.get_output_embeddings().weight[tokenizer.eos_token_id].mul_(4.0)  # responses of many lengths
    model.generation_config.update(do_sample=True, temperature=3.0, top_p=0.7, top_k=3, repetition_penalty=1.7)
    model.save_pretrained(path)
    adapters = (make_adapter(path, folder, version=0), make_adapter(path, folder, version=1))
    prompts = tuple(
        (0, *tokenizer(f"History:\n{', '.join(TITLES[:count])}\nNext book:\n", add_special_tokens=False)["input_ids"])
        for count in (1, 4, 2, 3, 5)
    )
    return TinyModel(path=str(path), tokenizer=tokenizer, adapters=adapters, prompts=prompts)


def make_adapter(
    model_path: Path, folder: Path, *, version: int, modules: list[str] | None = None
) -> AdapterCheckpoint:
    torch.manual_seed(100 + version)
    base = AutoModelForCausalLM.from_pretrained(model_path)
    peft_model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=modules or MODULES))
    with torch.no_grad():
        for name, weight in peft_model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    path = folder / f"adapter-{version}-{len(modules or MODULES)}"
    peft_model.save_pretrained(path)
    return AdapterCheckpoint(path=str(path), version=version)
