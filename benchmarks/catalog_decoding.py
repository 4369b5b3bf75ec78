"""Search over a catalogue against vLLM's ``LLM.beam_search`` and transformers' ``generate`` with a prefix function.

``python benchmarks/catalog_decoding.py --threads 2 [--only vllm transformers agree growth swap free]``. ``--data`` is a
folder of SPRec's Goodreads format, ``--model`` a small trained model with its tokenizer; without them a catalogue and
histories of the same size are made up, and the small Llama of configs/goodreads.yaml is trained on them once. Each
contender runs in a process of its own, in turn, ``--rounds`` times; its fastest round counts. Prints Markdown tables.
On a machine that does other work pin it (``taskset -c 2,3``).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from catalog_data import TRAIN_STEPS, Data, percentile, read_data, text_encoder, trained_model
from catalog_decoding_ours import Work, decoded, grown, ranked, searched, swapped
from catalog_decoding_peers import checked, generated, vllm_beams
from catalog_decoding_tables import TABLES, Bench

CONTENDERS: dict[str, Callable[..., Any]] = {
    "searched": searched,
    "decoded": decoded,
    "ranked": ranked,
    "grown": grown,
    "swapped": swapped,
    "generated": generated,
    "checked": checked,
    "vllm_beams": vllm_beams,
}


def main() -> None:
    """Run the comparisons and print their tables."""
    options = parse_options(list(TABLES))
    if options.measure:
        import torch

        torch.set_num_threads(options.threads)
        folder, name, arguments = json.loads(options.measure)
        result = CONTENDERS[name](Work.read(folder), **arguments)
        Path(folder, "result.json").write_text(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), options)
        bench = Bench(folder, options)
        for name in options.only:
            TABLES[name](bench, options)
            print(flush=True)


def parse_options(tables: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=tables, default=tables, metavar="TABLE")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--peer-prompts", type=int, default=32, help="prompts of LLM.beam_search, and of free beams")
    parser.add_argument("--rank-prompts", type=int, default=16, help="prompts for which all items are ranked")
    parser.add_argument("--growth-prompts", type=int, default=64, help="prompts of the growth table")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 10, 20])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16, 32], help="of generate")
    parser.add_argument("--catalogs", type=int, nargs="+", default=[4058, 32_000])
    parser.add_argument("--growth", type=int, nargs="+", default=[4058, 32_000, 250_000, 1_000_000])
    parser.add_argument("--data", help="a folder of SPRec's Goodreads format")
    parser.add_argument("--model", help="a trained model with its tokenizer")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "sprec_ray")
    parser.add_argument("--measure", help="internal: a folder, a contender and its arguments as JSON")
    return parser.parse_args()


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """Write what all contenders are given, and say what it is."""
    from transformers import AutoTokenizer

    data: Data = read_data(options.data)
    model = options.model or trained_model(data, options.cache, options.threads)
    encoder = text_encoder(AutoTokenizer.from_pretrained(model))
    responses = [encoder.response(title) for title in data.titles]
    room = encoder.room(responses)
    prompts = [encoder.prompt(history, room=room) for history, _ in data.test[: options.prompts]]
    lengths = [len(response) for response in responses]
    work = Work(folder, model, list(data.titles), prompts, percentile(lengths, 0.95))
    work.write()
    for size in options.catalogs:
        work.trie(size)
    tokens = sorted(map(len, prompts))
    made = (
        "given" if options.model else f"trained from scratch on {len(data.train)} {data.name} rows, {TRAIN_STEPS} steps"
    )
    print(
        f"Data: {data.name}, {len(data.titles)} titles of {percentile(lengths, 0.5)} tokens (95 %: {work.max_tokens}, "
        f"longest {max(lengths)}), {len(prompts)} prompts of {tokens[0]} to {tokens[-1]} tokens (median "
        f"{percentile(tokens, 0.5)}). Model: {made}. {options.threads} threads, best of {options.rounds} rounds.\n",
        flush=True,
    )


if __name__ == "__main__":
    main()
