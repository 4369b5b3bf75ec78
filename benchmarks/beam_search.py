"""Beam search of our vLLM decoder against vLLM's own ``LLM.beam_search`` and transformers' ``generate``.

``python benchmarks/beam_search.py``: one model with random weights, so that no beam ends early, and the same prompts
for all three; each engine runs in a process of its own with the same number of threads, because one process holds one
vLLM engine. Prints prompts per second and the ratio to ``LLM.beam_search``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

ENGINES = ("transformers", "LLM.beam_search", "ours on vLLM")
NUM_PROMPTS, NEW_TOKENS, REPEATS = 64, 24, 3


def main() -> None:
    """Run every engine in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--beams", type=int, nargs="+", default=[2, 6])
    parser.add_argument("--engine", choices=ENGINES)
    parser.add_argument("--model")
    options = parser.parse_args()
    if options.engine:
        print(json.dumps(measure(options.engine, options.model, options.beams, options.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        rates = {}
        for engine in ENGINES:
            command = [
                sys.executable,
                __file__,
                "--engine",
                engine,
                "--model",
                folder,
                "--threads",
                str(options.threads),
            ]
            command += ["--beams", *map(str, options.beams)]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment(options.threads))
            rates[engine] = json.loads(done.stdout.strip().split("\n")[-1])
    print("| beams | " + " | ".join(ENGINES) + " | ours / LLM.beam_search | ours / transformers |")
    print("|---|---|---|---|---|---|")
    for width in options.beams:
        row = [rates[engine][str(width)] for engine in ENGINES]
        cells = [f"{rate:.1f}" for rate in row]
        print(f"| {width} | " + " | ".join([*cells, f"{row[2] / row[1]:.2f}", f"{row[2] / row[0]:.2f}"]) + " |")


def environment(threads: int) -> dict[str, str]:
    """The same thread limits for every engine."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }


def write_model(folder: Path) -> None:
    """A Llama of 4 layers with a vocabulary of 3000, random weights and a tokenizer."""
    from sprec_ray.config_sections import ScratchConfig
    from sprec_ray.training.scratch import write_untrained_model

    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 8))) for _ in range(4000)]
    texts = (" ".join(rng.choices(words, k=10)) for _ in range(3000))
    write_untrained_model(folder, texts, ScratchConfig(), max_positions=512)


def measure(engine: str, folder: str, beams: list[int], threads: int) -> dict[str, float]:
    """Prompts per second by beam width, the best of three."""
    import torch

    torch.set_num_threads(threads)
    rng = random.Random(1)
    prompts = [[rng.randint(3, 2900) for _ in range(rng.randint(170, 230))] for _ in range(NUM_PROMPTS)]
    decode, forget = load(engine, folder, max(beams))
    decode(prompts[:4], max(beams))
    rates = {}
    for width in beams:
        best = float("inf")
        for _ in range(REPEATS):
            forget()
            start = time.perf_counter()
            decode(prompts, width)
            best = min(best, time.perf_counter() - start)
        rates[str(width)] = len(prompts) / best
    return rates


def load(engine: str, folder: str, width: int) -> tuple[Callable[[list[list[int]], int], Any], Callable[[], Any]]:
    """How an engine decodes, and how it forgets the prompts it has seen."""
    if engine == "LLM.beam_search":
        from vllm import LLM
        from vllm.sampling_params import BeamSearchParams

        llm = LLM(
            folder,
            dtype="float32",
            max_model_len=512,
            max_logprobs=2 * width,
            enforce_eager=True,
            kv_cache_memory_bytes=2**30,
        )

        def search(prompts: list[list[int]], beams: int) -> Any:
            rows = [{"prompt_token_ids": prompt} for prompt in prompts]
            return llm.beam_search(rows, BeamSearchParams(beam_width=beams, max_tokens=NEW_TOKENS))

        return search, llm.reset_prefix_cache
    from sprec_ray.config import DecodingConfig
    from sprec_ray.decoding.decoder import DecoderModel, make_decoder

    name: Literal["vllm", "transformers"] = "vllm" if engine == "ours on vLLM" else "transformers"
    model = DecoderModel(path=folder, max_model_len=512, max_beam_width=width)
    decoder: Any = make_decoder(DecodingConfig(engine=name), model, use_gpu=False, seed=0)

    def decode(prompts: list[list[int]], beams: int) -> Any:
        return decoder.decode(prompts, beam_width=beams, max_new_tokens=NEW_TOKENS)

    return decode, (decoder._llm.reset_prefix_cache if name == "vllm" else lambda: None)


if __name__ == "__main__":
    main()
