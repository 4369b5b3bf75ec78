"""The decoder on vLLM."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer

from sprec_ray.decoding.arrays import Floats, Longs
from sprec_ray.decoding.engines.decoder_model import DecoderModel
from sprec_ray.decoding.engines.free_beams import BeamSearch, make_hypothesis
from sprec_ray.decoding.engines.guarded_search import GuardedSearch, max_rows
from sprec_ray.decoding.engines.lora import LoraWeights, parameter_shapes, read_lora
from sprec_ray.decoding.engines.vllm.start import check_head_size, nf4_options, reload_weights, set_environment
from sprec_ray.decoding.engines.vllm.tree import forget_memory, vllm_tree, why_not_tree
from sprec_ray.decoding.tree.interface import TreeModel
from sprec_ray.types import AdapterCheckpoint, Hypothesis

if TYPE_CHECKING:  # so that a decoder runs without pydantic, where it is profiled alone
    from sprec_ray.config.run import DecodingConfig

logger = logging.getLogger(__name__)

_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as ``max_lora_rank``."""
_CPU_BLOCK_SIZE = 32
"""Tokens per cache block. A beam's next token recomputes its last, partly filled block: vLLM's 128 on a CPU costs 64
tokens per beam and step. CPU kernels want a multiple of 32."""


class VllmDecoder:
    """A ``Decoder`` over one in-process vLLM engine.

    Engines of one process share vLLM's process groups: closing one ends the others. A run hosts one per actor.

    With ``merge_adapters`` (the way on a CPU, where vLLM's LoRA kernels are slow) an adapter becomes part of the
    weights: every load reads the clean weights from the model's files again and adds the adapter to them, so nothing
    drifts and no second copy stays in memory. Otherwise (on a GPU) requests carry the adapter, each version under its
    own name, id and path. Either way the prefix cache is emptied: it holds keys and values of the previous adapter.
    """

    def __init__(
        self, config: DecodingConfig, model: DecoderModel, *, use_gpu: bool, merge_adapters: bool, seed: int
    ) -> None:
        set_environment()
        import vllm.platforms

        self.engine = f"vllm {vllm.__version__}"
        self._limits = model
        self._merge_adapters = merge_adapters
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
        self._eos: int = self._tokenizer.eos_token_id
        config_of_model = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
        self._shapes = parameter_shapes(config_of_model, trust_remote_code=model.trust_remote_code)
        if not use_gpu:
            check_head_size(config_of_model)
        self._adapter: AdapterCheckpoint | None = None
        self._lora_request: Any = None
        self.catalog = GuardedSearch(
            limits=model,
            open_tree=self._shared_tree,
            score=self.score,
            score_paths=self._score_paths,
            why_not=lambda: why_not_tree(self._llm),
            max_rows=max_rows(config_of_model, model),
        )
        platform = vllm.platforms.current_platform
        self._can_sleep = use_gpu and config.placement == "colocate" and platform.is_sleep_mode_available()
        self._asleep = False
        options: dict[str, Any] = (
            {"gpu_memory_utilization": config.gpu_memory_utilization}
            if use_gpu
            else {"kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30), "block_size": _CPU_BLOCK_SIZE}
        )
        if not merge_adapters:
            rank = next((rank for rank in _LORA_RANKS if rank >= model.lora_rank), None)
            if rank is None:
                raise ValueError(
                    f"model.lora.rank={model.lora_rank} exceeds vLLM's largest, {_LORA_RANKS[-1]}; lower it"
                )
            options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
        if model.tensor_parallel_size > 1:  # processes of this actor: Ray shows them the GPUs that it reserved
            options |= {"tensor_parallel_size": model.tensor_parallel_size, "distributed_executor_backend": "mp"}
        if model.quantization == "nf4":
            options |= nf4_options(model, config_of_model, merge_adapters=merge_adapters)
        self._llm: Any = vllm.LLM(
            model.path,
            dtype=model.dtype,
            max_model_len=model.max_model_len,
            max_logprobs=-1,  # a search by requests asks for the whole vocabulary
            seed=seed,
            skip_tokenizer_init=True,  # token ids in and out
            generation_config="vllm",  # not the model's own: it may ask for sampling
            trust_remote_code=model.trust_remote_code,
            enforce_eager=True,
            use_tqdm_on_load=False,
            enable_prefix_caching=True,
            enable_sleep_mode=self._can_sleep,
            **options,
        )

    def load_adapter(self, adapter: AdapterCheckpoint | None) -> None:
        """See ``Decoder.load_adapter``."""
        self.wake()
        if adapter == self._adapter:
            return
        if adapter is None:
            self._unload()
            return
        try:
            lora = read_lora(adapter.path, self._shapes)
            if self._merge_adapters:
                self._merge(lora, adapter.path)
            else:
                self._request(lora, adapter)
        except ValueError:
            self._unload()
            raise
        self._adapter = adapter
        self._forget_prefixes()

    def decode(
        self, prompts: Sequence[Sequence[int]], *, beam_width: int, max_new_tokens: int
    ) -> list[tuple[Hypothesis, ...]]:
        """See ``Decoder.decode``. All prompts are in the engine at once: hand over as many as there are."""
        self._limits.check_request(prompts, beam_width=beam_width, max_new_tokens=max_new_tokens)
        if beam_width == 1:
            return self._decode_greedy(prompts, max_new_tokens)
        searches = [
            BeamSearch(beam_width=beam_width, max_new_tokens=max_new_tokens, eos_token_id=self._eos) for _ in prompts
        ]
        # One request per running beam and token: vLLM's prefix cache holds what it shares with the step before.
        while any(search.running for search in searches):
            requests = [
                [*prompt, *beam.token_ids]
                for prompt, search in zip(prompts, searches, strict=True)
                for beam in search.running
            ]
            outputs = iter(self._generate(requests, max_tokens=1, logprobs=2 * beam_width, flat_logprobs=True))
            for search in searches:
                if search.running:
                    flat = [next(outputs).outputs[0].logprobs for _ in search.running]
                    search.advance([dict(zip(entry.token_ids, entry.logprobs, strict=True)) for entry in flat])
        return [
            tuple(make_hypothesis(self._tokenizer, beam.token_ids, beam.logp) for beam in search.finished)
            for search in searches
        ]

    def _shared_tree(self, num_rows: int) -> AbstractContextManager[TreeModel]:
        self.wake()
        return vllm_tree(self._llm, num_rows=num_rows, lora_request=self._lora_request)

    def _score_paths(self, paths: Sequence[Sequence[int]], next_tokens: Sequence[Longs]) -> list[Floats]:
        """One request per path: what paths have in common is in the prefix cache."""
        found: list[Floats] = []
        for output, tokens in zip(
            self._generate(paths, max_tokens=1, logprobs=-1, flat_logprobs=True), next_tokens, strict=True
        ):
            flat = output.outputs[0].logprobs
            logps = dict(zip(flat.token_ids, flat.logprobs, strict=True))
            found.append(np.array([logps[token] for token in tokens.tolist()]))
        return found

    def score(self, prompt: Sequence[int], response: Sequence[int], *, tree: bool = False) -> float:
        """See ``Decoder.score``. The last token is scored as the next one: a full context needs no room after it."""
        if tree:
            return self.catalog.score_in_tree(prompt, response)
        (output,) = self._generate(
            [[*prompt, *response[:-1]]], max_tokens=1, prompt_logprobs=0, logprob_token_ids=[response[-1]]
        )
        scored = [*output.prompt_logprobs[len(prompt) :], output.outputs[0].logprobs[0]]
        return float(sum(entry[token].logprob for entry, token in zip(scored, response, strict=True)))

    def sleep(self) -> None:
        """See ``Decoder.sleep``. Level 1 keeps weights and adapters in the CPU's memory and drops the cache."""
        if self._can_sleep and not self._asleep:
            self._llm.collective_rpc(forget_memory)
            self._llm.sleep(level=1)
            self._asleep = True

    def wake(self) -> None:
        """See ``Decoder.wake``. The cache's memory comes back with no keys and values in it, so no prefix may hit."""
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False
            self._forget_prefixes()

    def close(self) -> None:
        """See ``Decoder.close``."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            gc.collect()  # the engine holds itself in cycles
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _decode_greedy(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[tuple[Hypothesis, ...]]:
        outputs = self._generate(prompts, max_tokens=max_new_tokens, logprobs=0)
        return [
            (make_hypothesis(self._tokenizer, output.outputs[0].token_ids, output.outputs[0].cumulative_logprob),)
            for output in outputs
        ]

    def _generate(self, prompts: Sequence[Sequence[int]], **options: Any) -> list[Any]:
        """VLLM's outputs in the order of the prompts, for greedy requests that stop at EOS."""
        from vllm import SamplingParams

        self.wake()
        params = SamplingParams(
            temperature=0.0,
            stop_token_ids=[self._eos],
            ignore_eos=True,  # the line above is the only stop: models list further tokens as EOS
            detokenize=False,
            skip_clone=True,
            **options,
        )
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs: list[Any] = self._llm.generate(requests, params, use_tqdm=False, lora_request=self._lora_request)
        return outputs

    def _merge(self, lora: LoraWeights, path: str) -> None:
        self._adapter = AdapterCheckpoint(path=path, version=-1)  # from here on the weights are not the base's
        (merged,) = self._llm.collective_rpc(reload_weights, args=(lora,))
        missing = sorted(set(lora.factors) - merged)
        if missing:
            raise ValueError(
                f"{path}: the model's files hold no weight {missing[0]} ({len(missing)} in all); adapt other "
                "modules, or set decoding.engine=transformers"
            )

    def _request(self, lora: LoraWeights, adapter: AdapterCheckpoint) -> None:
        from vllm.lora.request import LoRARequest

        if lora.rank > self._limits.lora_rank:
            raise ValueError(
                f"{adapter.path} has rank {lora.rank}, the decoder was started for {self._limits.lora_rank}; "
                "set model.lora.rank to the larger"
            )
        self._unload()
        request = LoRARequest(f"version-{adapter.version}", adapter.version + 1, adapter.path)  # ids start at 1
        if not self._llm.llm_engine.add_lora(request):
            raise ValueError(f"{adapter.path}: vLLM did not take the adapter; set decoding.engine=transformers")
        self._lora_request = request

    def _unload(self) -> None:
        """Go back to the base model alone."""
        if self._merge_adapters and self._adapter is not None:
            self._llm.collective_rpc(reload_weights, args=(None,))
        if self._lora_request is not None:
            self._llm.llm_engine.remove_lora(self._lora_request.lora_int_id)
        self._adapter = self._lora_request = None
        self._forget_prefixes()

    def _forget_prefixes(self) -> None:
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache: a request is still running; start the decoder again")
