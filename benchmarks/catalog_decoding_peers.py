"""The contenders of catalog_decoding.py that are vLLM's and transformers' own; each runs in a process of its own."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch
from catalog_data import in_catalog_share
from catalog_decoding_ours import WIDEST, Work, timed

from sprec_ray.decoding.catalog.trie import Trie


class AllowedTokens:
    """A ``prefix_allowed_tokens_fn`` by look-ups in the trie's arrays, and the seconds it took."""

    def __init__(self, trie: Trie, eos: int) -> None:
        self.tokens, self.first_child = trie.token_n.tolist(), trie.first_child_n.tolist()
        self.slices, self.end = torch.from_numpy(trie.token_n.astype("int64")), torch.tensor([eos])
        self.width, self.seconds = 0, 0.0
        """Tokens of the padded prompts."""

    def node(self, response: Sequence[int]) -> int | None:
        """Where the tokens lead from the root; None outside the trie."""
        node, tokens, first_child = 0, self.tokens, self.first_child
        for token in response:
            end = first_child[node + 1]
            node = bisect_left(tokens, token, first_child[node], end)
            if node == end or tokens[node] != token:
                return None
        return node

    def __call__(self, _: int, sent: torch.Tensor) -> torch.Tensor:
        """What may follow; EOS where nothing does: beams without a chance, and rows that are done."""
        node = self.node(sent[self.width :].tolist())
        if node is None or self.first_child[node] == self.first_child[node + 1]:
            return self.end
        return self.slices[self.first_child[node] : self.first_child[node + 1]]

    def timed(self, batch: int, sent: torch.Tensor) -> torch.Tensor:
        """The same, by the clock."""
        start = time.perf_counter()
        allowed = self(batch, sent)
        self.seconds += time.perf_counter() - start
        return allowed


class Generate:
    """``generate`` over the catalogue of a size, or free where that is None, on left-padded prompts."""

    def __init__(self, work: Work, size: int | None) -> None:
        from transformers import AutoModelForCausalLM, GenerationConfig

        tokenizer = work.tokenizer()
        self.eos, self.pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        self.model: Any = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32).eval()
        self.model.generation_config = GenerationConfig()
        trie = None if size is None else work.trie(size)
        self.allowed = None if trie is None else AllowedTokens(trie, self.eos)
        self.new_tokens = work.max_tokens if trie is None else trie.depth

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Sequence[int]], beams: int, *, details: bool = False) -> Any:
        """Beams ranked by the plain sum of log-probabilities; ``details``: with what their scores are read from."""
        from transformers import GenerationConfig

        width, allowed = max(map(len, prompts)), self.allowed
        if allowed is not None:
            allowed.width = width
        config = GenerationConfig(
            do_sample=False,
            num_beams=beams,
            num_return_sequences=beams,
            length_penalty=0.0 if beams > 1 else None,
            early_stopping="never" if beams > 1 else None,
            max_new_tokens=self.new_tokens,
            eos_token_id=self.eos,
            pad_token_id=self.pad,
            return_dict_in_generate=True,
            output_scores=details and beams > 1,
            output_logits=details and beams == 1,
        )
        return self.model.generate(
            input_ids=torch.tensor([[self.pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]),
            attention_mask=torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
            generation_config=config,
            prefix_allowed_tokens_fn=allowed.timed if details and allowed is not None else allowed,
        )


def generated(
    work: Work, *, size: int | None, batch: int, beams: Sequence[int], count: int | None = None
) -> dict[str, Any]:
    """Seconds of ``generate`` on prompts sorted by length."""
    generate, prompts, seconds = Generate(work, size), sorted(work.prompts[:count], key=len), {}
    for width in beams:
        generate(prompts[: min(batch, 2)], width)

        def run(width: int = width) -> None:
            for start in range(0, len(prompts), batch):
                generate(prompts[start : start + batch], width)

        seconds[f"generate {batch} {width}"], _ = timed(run)
    return {"seconds": seconds, "count": len(prompts)}


def checked(work: Work, *, size: int, batch: int, beams: Sequence[int], count: int) -> dict[str, Any]:
    """The answers of ``generate``, in the order of the prompts, and its prefix function's share of the time."""
    generate = Generate(work, size)
    allowed = generate.allowed
    assert allowed is not None
    by_length = sorted(range(min(count, len(work.prompts))), key=lambda number: len(work.prompts[number]))
    answers: dict[str, list[tuple[list[int], list[float]]]] = {}
    shares = {}
    for width in beams:
        allowed.seconds, found = 0.0, dict[int, tuple[list[int], list[float]]]()
        start = time.perf_counter()
        for first in range(0, len(by_length), batch):
            numbers = by_length[first : first + batch]
            output = generate([work.prompts[number] for number in numbers], width, details=True)
            found.update(zip(numbers, _leaves(output, width, allowed), strict=True))
        shares[str(width)] = allowed.seconds / (time.perf_counter() - start)
        answers[f"beam {width}"] = [found[number] for number in range(len(found))]
    return {"seconds": {}, "count": len(by_length), "answers": answers, "shares": shares}


def _leaves(output: Any, width: int, allowed: AllowedTokens) -> list[tuple[list[int], list[float]]]:
    """Leaves and log-probabilities of each prompt's beams, best first."""
    eos = int(allowed.end)
    responses = [row[: row.index(eos) + 1] for row in output.sequences[:, allowed.width :].tolist()]
    if width > 1:
        logps = output.sequences_scores.tolist()
    else:  # greedy: no scores of sequences
        table = torch.stack(output.logits, dim=1).float().log_softmax(-1)
        logps = [float(rows[range(len(row)), row].double().sum()) for rows, row in zip(table, responses, strict=True)]
    found = []
    for first in range(0, len(responses), width):
        leaves = [allowed.node(row) for row in responses[first : first + width]]
        beams = [(leaf, logp) for leaf, logp in zip(leaves, logps[first : first + width], strict=True) if leaf]
        beams.sort(key=lambda beam: -beam[1])
        found.append(([leaf for leaf, _ in beams], [logp for _, logp in beams]))
    return found


def vllm_beams(
    work: Work, *, beams: Sequence[int], count: int, block_size: int | None, limits: Sequence[int | None]
) -> dict[str, Any]:
    """The engine's ``LLM.beam_search`` with its ways to batch: all prompts at once, or a number of them."""
    from vllm import LLM
    from vllm.sampling_params import BeamSearchParams

    llm: Any = LLM(
        work.model,
        dtype="float32",
        max_model_len=work.positions(),
        max_logprobs=2 * WIDEST,
        enforce_eager=True,
        kv_cache_memory_bytes=2**30,
        generation_config="vllm",
        **({} if block_size is None else {"block_size": block_size}),
    )
    rows = [{"prompt_token_ids": prompt} for prompt in work.prompts[:count]]
    seconds, shares = {}, {}
    tokenizer = work.tokenizer()
    for width in beams:
        params = BeamSearchParams(beam_width=width, max_tokens=work.max_tokens)
        llm.beam_search(rows[:1], params)
        for limit in limits:
            llm.reset_prefix_cache()
            seconds[f"peer {block_size} {limit} {width}"], outputs = timed(
                llm.beam_search, rows, params, concurrency_limit=limit
            )
        texts = [
            tokenizer.decode(_response(beam.tokens[len(prompt) :], tokenizer.eos_token_id))
            for prompt, output in zip(work.prompts, outputs, strict=False)
            for beam in output.sequences
        ]
        shares[str(width)] = in_catalog_share(texts, work.titles)
    return {"seconds": seconds, "count": len(rows), "in_catalog": shares}


def _response(tokens: list[int], eos: int) -> list[int]:
    return tokens[: tokens.index(eos)] if eos in tokens else tokens
