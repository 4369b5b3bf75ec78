"""The decoder on plain transformers, without PEFT: the reference in tests, the fallback where there is no vLLM."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import transformers
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

from sprec_ray.decoding.arrays import Floats, Longs
from sprec_ray.decoding.engines.decoder_model import DecoderModel
from sprec_ray.decoding.engines.free_beams import make_hypothesis
from sprec_ray.decoding.engines.guarded_search import GuardedSearch, max_rows
from sprec_ray.decoding.engines.lora import parameter_shapes, read_lora
from sprec_ray.decoding.tree.interface import TreeModel
from sprec_ray.decoding.tree.last_layer import Read, skip_unread
from sprec_ray.decoding.tree.rows import KeyValues, TreeRows
from sprec_ray.models.quantization import quantized_loading
from sprec_ray.types import AdapterCheckpoint, Hypothesis

logger = logging.getLogger(__name__)

_MAX_SEQUENCES = 64
"""Beams decoded together, at most."""
_TREE_ATTENTION = "sprec_ray_tree"
_MAX_SCORE_BYTES = 2**30
"""``generate`` keeps a [beams, vocabulary] table per new token to return a beam's score."""


class TransformersDecoder:
    """A ``Decoder`` over ``generate``, and over a tree of tokens for the catalogue.

    In float32 on a CPU an adapter's sum with the base weights takes their place, since small products cost much there.
    Else it stays beside them, as in training, and in bfloat16 the log-probabilities round like the trainer's. The base
    weights are never written, so any number of swaps leaves them bit for bit as loaded.
    """

    def __init__(self, model: DecoderModel, *, use_gpu: bool) -> None:
        self.engine = f"transformers {transformers.__version__}"
        self._limits = model
        self._device = torch.device("cuda" if use_gpu else "cpu")
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            model.path,
            dtype=getattr(torch, model.dtype),
            use_safetensors=True,
            trust_remote_code=model.trust_remote_code,
            **quantized_loading(model.quantization, dtype=getattr(torch, model.dtype), device=self._device),
        )
        if getattr(self._model.config, "attn_logit_softcapping", None) is not None:
            self._model.set_attn_implementation("eager")  # Gemma 2's cap; transformers' default attention leaves it out
        self._model.to(self._device).eval()
        # generate fills what a call leaves unset from the model's own generation_config: give it nothing to find.
        self._model.generation_config = GenerationConfig()
        self._shapes = parameter_shapes(self._model.config, trust_remote_code=model.trust_remote_code)
        self._hooks: list[RemovableHandle] = []
        self._base_weights: list[tuple[Any, torch.Tensor]] = []
        self._tree_memory = KeyValues()
        self.catalog = GuardedSearch(
            limits=model,
            open_tree=self._shared_tree,
            score=self.score,
            score_paths=self._score_paths,
            why_not=lambda: None,
            max_rows=max_rows(self._model.config, model),
        )
        self._asleep = False

    def load_adapter(self, adapter: AdapterCheckpoint | None) -> None:
        """See ``Decoder.load_adapter``."""
        self.wake()
        for hook in self._hooks:
            hook.remove()
        for module, weight in self._base_weights:
            module.weight.data = weight
        self._hooks, self._base_weights = [], []
        if adapter is None:
            return
        lora = read_lora(adapter.path, self._shapes)
        for name, factors in lora.factors.items():
            module = self._model.get_submodule(name.removesuffix(".weight"))
            if self._device.type == "cpu" and self._limits.dtype == "float32":
                self._base_weights.append((module, module.weight.data))
                module.weight.data = lora.merge(name, module.weight.data)
            else:
                a, b = (factor.to(self._device, torch.float32) for factor in factors)
                self._hooks.append(module.register_forward_hook(partial(_add_lora, a=a, b=lora.scale * b)))

    def decode(
        self, prompts: Sequence[Sequence[int]], *, beam_width: int, max_new_tokens: int
    ) -> list[tuple[Hypothesis, ...]]:
        """See ``Decoder.decode``."""
        self.wake()
        self._limits.check_request(prompts, beam_width=beam_width, max_new_tokens=max_new_tokens)
        by_length = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))  # alike lengths waste no padding
        score_bytes = 4 * self._model.config.get_text_config().vocab_size * max_new_tokens
        num_prompts = max(1, min(_MAX_SEQUENCES, _MAX_SCORE_BYTES // score_bytes) // beam_width)
        decoded: dict[int, tuple[Hypothesis, ...]] = {}
        for start in range(0, len(by_length), num_prompts):
            rows = by_length[start : start + num_prompts]
            batch = self._decode_batch([prompts[row] for row in rows], beam_width, max_new_tokens)
            decoded.update(zip(rows, batch, strict=True))
        return [decoded[row] for row in range(len(prompts))]

    @torch.inference_mode()
    def score(self, prompt: Sequence[int], response: Sequence[int], *, tree: bool = False) -> float:
        """See ``Decoder.score``."""
        self.wake()
        if tree:
            return self.catalog.score_in_tree(prompt, response)
        input_ids = torch.tensor([[*prompt, *response]], device=self._device)
        logits = self._model(input_ids=input_ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        logps = logits.float().log_softmax(-1)
        return float(logps.gather(-1, input_ids[0, len(prompt) :, None]).sum())

    def sleep(self) -> None:
        """See ``Decoder.sleep``. The adapter's factors, a hundredth of the weights, stay where they are."""
        if self._device.type == "cuda" and not self._asleep:
            self._model.to("cpu")
            self._tree_memory = KeyValues()
            torch.cuda.empty_cache()
            self._asleep = True

    def wake(self) -> None:
        """See ``Decoder.wake``."""
        if self._asleep:
            self._model.to(self._device)
            self._asleep = False

    def close(self) -> None:
        """See ``Decoder.close``."""
        self._model = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _score_paths(self, paths: Sequence[Sequence[int]], next_tokens: Sequence[Longs]) -> list[Floats]:
        """A row of the model for each path."""
        found: list[Floats] = []
        for path, tokens in zip(paths, next_tokens, strict=True):
            logits = self._model(input_ids=torch.tensor([path], device=self._device), use_cache=False).logits[0, -1]
            logps = logits.double().log_softmax(-1)
            found.append(logps[torch.from_numpy(tokens).to(self._device)].cpu().numpy())
        return found

    @contextmanager
    def _shared_tree(self, num_rows: int) -> Iterator[TreeModel]:
        """The model with our attention while the block lasts."""
        self.wake()
        own = self._model.config._attn_implementation
        self._model.set_attn_implementation(_TREE_ATTENTION)

        def forward(ids_T: torch.Tensor, positions_T: torch.Tensor, keep_A: torch.Tensor) -> torch.Tensor:
            read.expect(keep_A, len(ids_T))
            logits: torch.Tensor = self._model(
                input_ids=ids_T[None],
                position_ids=positions_T[None],
                use_cache=False,
                logits_to_keep=keep_A,
                tree=tree,
            ).logits[0]
            return logits

        # Put back only if nothing fails: NaN there would spoil later searches, as hidden it still is 0 times NaN.
        memory, self._tree_memory = self._tree_memory, KeyValues()
        read = Read()
        tree = TreeRows(forward, num_rows=num_rows, device=self._device, memory=memory)
        layers = getattr(self._model.get_decoder(), "layers", [None])
        try:
            with skip_unread(layers[-1], read):
                yield tree
            self._tree_memory = memory
        finally:
            self._model.set_attn_implementation(own)

    @torch.inference_mode()
    def _decode_batch(
        self, prompts: Sequence[Sequence[int]], beam_width: int, max_new_tokens: int
    ) -> list[tuple[Hypothesis, ...]]:
        eos, pad = self._tokenizer.eos_token_id, self._tokenizer.pad_token_id
        pad = eos if pad is None else pad
        width = max(len(prompt) for prompt in prompts)
        padded = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        recorder = _GreedyRecorder()
        generated = self._model.generate(  # positions follow from the mask
            input_ids=torch.tensor(padded, device=self._device),
            attention_mask=torch.tensor(mask, device=self._device),
            generation_config=GenerationConfig(
                do_sample=False,
                num_beams=beam_width,
                num_return_sequences=beam_width,
                length_penalty=0.0 if beam_width > 1 else None,
                early_stopping="never" if beam_width > 1 else None,
                max_new_tokens=max_new_tokens,
                eos_token_id=eos,
                pad_token_id=pad,
                return_dict_in_generate=True,
                output_scores=beam_width > 1,
            ),
            logits_processor=LogitsProcessorList([recorder] if beam_width == 1 else []),
        )
        sequences = [_until(eos, row) for row in generated.sequences[:, width:].tolist()]
        if beam_width > 1:
            logps = generated.sequences_scores.tolist()
        else:
            table = torch.stack(recorder.logps, dim=1).tolist()
            logps = [sum(row[: len(tokens)]) for row, tokens in zip(table, sequences, strict=True)]
        found = [make_hypothesis(self._tokenizer, *beam) for beam in zip(sequences, logps, strict=True)]
        return [
            tuple(sorted(found[first : first + beam_width], key=lambda hypothesis: -hypothesis.logp))
            for first in range(0, len(found), beam_width)
        ]


def _tree_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: Any, *, tree: TreeRows, **options: Any
) -> tuple[torch.Tensor, None]:
    """Outputs [1, T, H, D] for query [1, H, T, D], key and value [1, G, T, D]."""
    output = tree.attend(
        module.layer_idx,
        *(states[0].transpose(0, 1) for states in (query, key, value)),
        scaling=options["scaling"],
        softcap=options.get("softcap"),
        window=options.get("sliding_window"),
    )
    return output[None], None


AttentionInterface.register(_TREE_ATTENTION, _tree_attention)


def _add_lora(_: Any, inputs: tuple[torch.Tensor], output: torch.Tensor, *, a: torch.Tensor, b: torch.Tensor) -> Any:
    """The layer's output with the adapter's part, added in float32 and rounded once, as PEFT does in training."""
    return (output + linear(linear(inputs[0].float(), a), b)).to(output.dtype)


class _GreedyRecorder(LogitsProcessor):  # type: ignore[misc]
    """Keeps the log-probability of each step's most probable token, which is the one greedy decoding takes."""

    def __init__(self) -> None:
        self.logps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.logps.append(scores.float().log_softmax(-1).amax(-1))
        return scores


def _until(eos: int, token_ids: list[int]) -> list[int]:
    return token_ids[: token_ids.index(eos) + 1] if eos in token_ids else token_ids
