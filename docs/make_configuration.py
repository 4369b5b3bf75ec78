"""Writes the table of keys in docs/configuration.md from the code: ``python docs/make_configuration.py``."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from sprec_ray.config import methods
from sprec_ray.config.load import config_to_dict, flatten
from sprec_ray.config.run import RunConfig

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [ROOT / "sprec_ray" / "config" / f"{name}.py" for name in ("run", "methods", "data")]
DOCUMENT = ROOT / "docs" / "configuration.md"
BEGIN, END = "<!-- table: python docs/make_configuration.py -->\n", "<!-- end of table -->\n"

TYPES = {
    "int": "whole number",
    "float": "number",
    "str": "text",
    "bool": "true, false",
    "PositiveInt": "whole number > 0",
    "NonNegativeInt": "whole number >= 0",
    "PositiveFloat": "number > 0",
    "NonNegativeFloat": "number >= 0",
    "Share": "number from 0 to 1",
    "ExampleCount": "whole number > 0, or `all`",
    "NumberOrValid": "number >= 0, or `valid`",
    "MicroBatchSize": "whole number > 0, or `auto`",
}
SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}

WITHOUT_SENTENCE = {
    "DemoDataConfig.num_items": "Titles of the generated catalogue.",
    "DemoDataConfig.num_users": "Generated users.",
    "DataConfig.source": "The reader of the raw data; see datasets.md.",
    "DataConfig.template": "Wording of the prompt: Alpaca's instruction, or two words for small models.",
    "DataConfig.max_history": "Titles of a history at most; the latest are kept.",
    "DataConfig.num_train": "Training examples drawn.",
    "DataConfig.num_valid": "Valid examples drawn: what `jobs.evaluate` and sweeps measure on.",
    "DataConfig.num_test": "Test examples drawn.",
    "DataConfig.user_column": "Column of the user (`huggingface`).",
    "DataConfig.item_column": "Column of the item; the title stands in where the column is absent (`huggingface`).",
    "DataConfig.time_column": "Column of the time (`huggingface`).",
    "DataConfig.title_column": "Column of the title (`huggingface`).",
    "DataConfig.genres_column": "Column of the genres, if any (`huggingface`).",
    "ScratchConfig.vocab_size": "Tokens of the byte-level BPE, learned on the catalogue and the training text.",
    "ScratchConfig.hidden_size": "Width; a multiple of twice `num_heads`.",
    "ScratchConfig.num_layers": "Layers.",
    "ScratchConfig.num_heads": "Attention heads.",
    "ScratchConfig.num_epochs": "Passes over the text of the training examples.",
    "ScratchConfig.global_batch_size": "Examples per optimizer step, over all workers.",
    "ScratchConfig.micro_batch_size": "Examples per forward pass of a worker.",
    "LoraConfig.rank": "Rank of the factors.",
    "LoraConfig.alpha": "The update is scaled by alpha / rank.",
    "LoraConfig.target_modules": "Names of the adapted modules.",
    "ModelConfig.dtype": "Precision of the base weights; the adapter is always float32.",
    "ModelConfig.max_prompt_tokens": "Longer prompts lose their oldest titles, and are counted.",
    "ModelConfig.trust_remote_code": "Whether code that comes with a model may run.",
    "TrainingConfig.num_workers": "Workers of the training group.",
    "TrainingConfig.cpus_per_worker": "CPUs that Ray reserves for a worker.",
    "TrainingConfig.zero_stage": "DeepSpeed ZeRO: 1 shards optimizer state, 2 also gradients, 3 also parameters.",
    "TrainingConfig.max_grad_norm": "Gradients are clipped to this norm.",
    "TrainingConfig.weight_decay": "Of AdamW.",
    "TrainingConfig.gradient_checkpointing": "Recompute activations in the backward pass: less memory, more time.",
    "PhaseConfig.learning_rate": "Peak of the schedule.",
    "PhaseConfig.num_epochs": "Passes over the examples.",
    "PhaseConfig.global_batch_size": "Examples per optimizer step, over all workers; a multiple of their number.",
    "PhaseConfig.micro_batch_size": "Examples per forward pass of a worker; `auto` takes what fits in memory.",
    "PreferenceConfig.learning_rate": "Peak of the schedule.",
    "PreferenceConfig.num_epochs": "Passes over the groups.",
    "PreferenceConfig.global_batch_size": "Groups per optimizer step, over all workers; a multiple of their number.",
    "DecodingConfig.num_decoders": "Engines in the pool.",
    "DecodingConfig.cpus_per_decoder": "CPUs that Ray reserves for a decoder, and its threads on a CPU.",
    "DecodingConfig.gpus_per_decoder": "0 decodes on the CPU; a share below 1 lets a worker live on the same GPU.",
    "DecodingConfig.gpu_memory_utilization": "Share of a GPU's memory that a vLLM engine takes.",
    "SelfPlayConfig.num_iterations": "Iterations of SFT and preference training.",
    "EvaluationConfig.k": "Places of the ranked list that are measured.",
    "EvaluationConfig.sentence_model": "The model of `grounding=sentence`.",
    "CollaborativeConfig.hidden_size": "Width of the item embeddings and the states.",
    "CollaborativeConfig.num_layers": "Layers, of networks that have several.",
    "CollaborativeConfig.num_heads": "Attention heads, of networks with attention.",
    "CollaborativeConfig.dropout": "In training.",
    "CollaborativeConfig.num_negatives": "Uniform items beside each target of `bce`.",
    "CollaborativeConfig.learning_rate": "Of Adam.",
    "CollaborativeConfig.weight_decay": "Of Adam.",
    "CollaborativeConfig.batch_size": "Rows of a step, each with all its targets.",
    "CollaborativeConfig.num_epochs": "Passes over the rows at most.",
    "RunConfig.output_dir": "Folder of all runs, or an address such as `s3://BUCKET/PREFIX`.",
    "RunConfig.seed": "Examples of an iteration, shuffling, dropout, fresh adapters and negatives derive from it.",
}
"""Meanings of fields that have no sentence in the code."""


def render_table() -> str:
    """The table of every key with its type, default and meaning, as Markdown."""
    classes = {
        node.name: node
        for source in SOURCES
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config")
    }
    defaults = flatten(config_to_dict(RunConfig()))
    rows = list(_rows(classes, "RunConfig", ""))
    assert [key for key, *_ in rows] == list(defaults), "the table lists every key of RunConfig"
    unused = WITHOUT_SENTENCE.keys() - {name for *_, name in rows}
    assert not unused, f"no such field, or it has a sentence in the code: {sorted(unused)}"
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    lines += [f"| `{key}` | {kind} | `{_plain(defaults[key])}` | {meaning} |" for key, kind, meaning, _ in rows]
    return "\n".join(lines) + "\n"


def render_document(text: str) -> str:
    """The document with its table replaced."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + render_table() + END + after


def _rows(classes: dict[str, ast.ClassDef], name: str, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """(dotted key, type, meaning, ``Class.field`` where the meaning is not from the code) of a class's fields."""
    for key, (node, following, owner) in _fields(classes, name).items():
        if isinstance(node.annotation, ast.Name) and node.annotation.id in classes:
            yield from _rows(classes, node.annotation.id, f"{prefix}{key}.")
        elif isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            meaning = " ".join(str(following.value.value).split()).replace("``", "`").replace("|", "\\|")
            yield prefix + key, _kind(node.annotation), meaning, ""
        else:
            field = f"{owner}.{key}"
            yield prefix + key, _kind(node.annotation), WITHOUT_SENTENCE.get(field, ""), field


def _fields(classes: dict[str, ast.ClassDef], name: str) -> dict[str, tuple[ast.AnnAssign, ast.stmt, str]]:
    """Field to its declaration, what follows it, and its class; a subclass keeps the place and sentence of its base."""
    fields: dict[str, tuple[ast.AnnAssign, ast.stmt, str]] = {}
    for base in classes[name].bases:
        if isinstance(base, ast.Name) and base.id in classes:
            fields |= _fields(classes, base.id)
    body = classes[name].body
    for node, following in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            fields.setdefault(node.target.id, (node, following, name))
    return fields


def _kind(annotation: ast.expr) -> str:
    """A type for people: ``Annotated[int, Field(ge=50)]`` is ``whole number >= 50``."""
    if isinstance(annotation, ast.BinOp):
        return f"{_kind(annotation.left)}, or null"
    if isinstance(annotation, ast.Name) and annotation.id == "Loss":
        return ", ".join(f"`{value}`" for value in get_args(methods.Loss))
    if not isinstance(annotation, ast.Subscript):
        return TYPES[ast.unparse(annotation)]
    inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    match ast.unparse(annotation.value):
        case "Literal":
            return ", ".join(f"`{ast.literal_eval(value)}`" for value in inner)
        case "tuple":
            count = "list" if ast.unparse(inner[-1]) == "..." else f"list of {len(inner)}"
            return f"{count}: {_kind(inner[0])}"
        case _:
            bounds = inner[1].keywords if isinstance(inner[1], ast.Call) else []
            limits = [f"{SIGNS[word.arg]} {ast.unparse(word.value)}" for word in bounds if word.arg in SIGNS]
            return " ".join([_kind(inner[0]), " and ".join(limits)])


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    DOCUMENT.write_text(render_document(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
