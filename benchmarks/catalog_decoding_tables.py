"""The tables of catalog_decoding.py: which contenders run, and what is printed of what they return."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

KINDS = ("beam", "exact", "sample")
CHECK_BATCH = 8
Answers = list[tuple[list[int], list[float]]]
"""Leaves and log-probabilities of each prompt."""
Contenders = dict[Any, tuple[str, dict[str, Any]]]
Row = tuple[Any, ...]


class Bench:
    """Runs contenders in fresh processes."""

    def __init__(self, folder: str, options: argparse.Namespace) -> None:
        self.folder, self.threads, self.rounds = folder, options.threads, options.rounds
        self._known: dict[str, Any] = {}

    def measure(self, name: str, arguments: dict[str, Any]) -> Any:
        """What a contender returns in a fresh process."""
        command = [sys.executable, str(Path(__file__).with_name("catalog_decoding.py")), "--threads", str(self.threads)]
        command += ["--measure", json.dumps([self.folder, name, arguments])]
        environment = os.environ | {
            "OMP_NUM_THREADS": str(self.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            sys.exit(f"{name} {arguments} failed:\n{done.stderr[-4000:]}")
        return json.loads(Path(self.folder, "result.json").read_text())

    def once(self, name: str, **arguments: Any) -> Any:
        """The same, without further rounds; remembered."""
        key = json.dumps([name, arguments])
        if key not in self._known:
            self._known[key] = self.measure(name, arguments)
        return self._known[key]

    def best(self, contenders: Contenders) -> dict[Any, dict[str, Any]]:
        """What each contender returned, with its least seconds of several rounds in which all take their turn."""
        found: dict[Any, dict[str, Any]] = {}
        for _ in range(self.rounds):
            for key, (name, arguments) in contenders.items():
                new = self.measure(name, arguments)
                old = found.setdefault(key, new)["seconds"]
                old.update({label: min(old[label], seconds) for label, seconds in new["seconds"].items()})
        for result in found.values():
            result["rates"] = {label: result["count"] / seconds for label, seconds in result["seconds"].items()}
        return found


def table(*rows: Iterable[Any]) -> None:
    """Print rows, the first of which names the columns."""
    for number, row in enumerate(rows):
        cells = [f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row]
        print("| " + " | ".join(cells) + " |")
        if number == 0:
            print("|" + "---|" * len(cells))


def peers_of(options: argparse.Namespace) -> Contenders:
    """``LLM.beam_search`` with vLLM's block size and with ours, all prompts at once and some at a time."""
    common = {"beams": options.beams, "count": options.peer_prompts, "limits": [None, 1, 8]}
    return {("peer", size): ("vllm_beams", {**common, "block_size": size}) for size in (None, 32)}


def fastest(results: dict[Any, dict[str, Any]], who: str, width: int) -> tuple[float, str]:
    """The best rate of a peer's ways at a beam width, and which it was."""
    return max(
        (rate, label.removeprefix(f"{who} ").rsplit(" ", 1)[0])
        for result in results.values()
        for label, rate in result["rates"].items()
        if label.startswith(f"{who} ") and label.endswith(f" {width}")
    )


def vllm_table(bench: Bench, options: argparse.Namespace) -> None:
    """Ours on vLLM against ``LLM.beam_search``, which knows no catalogue."""
    common = {"engine": "vllm", "kinds": KINDS, "beams": options.beams}
    contenders = peers_of(options) | {
        ("ours", size): ("searched", {**common, "size": size}) for size in options.catalogs
    }
    results = bench.best(contenders)
    print(
        f"vLLM; prompts/s; `LLM.beam_search` on {results['peer', None]['count']} prompts, best block size and limit\n"
    )
    names = ("catalogue", "K", "`LLM.beam_search`", "its best (block size, limit)", "in catalogue")
    rows: list[Row] = [(*names, *KINDS, *(f"{kind} / peer" for kind in KINDS), "in catalogue, ours", "GPU")]
    for size in options.catalogs:
        ours = results["ours", size]
        for width in options.beams:
            peer, way = fastest(results, "peer", width)
            rates = [ours["rates"][f"{kind} {width}"] for kind in KINDS]
            theirs = f"{results['peer', None]['in_catalog'][str(width)]:.0%}"
            share = f"{min(ours['in_catalog'][f'{kind} {width}'] for kind in KINDS):.0%}"
            rows.append((size, width, peer, way, theirs, *rates, *(rate / peer for rate in rates), share, ""))
    table(*rows)


def free_table(bench: Bench, options: argparse.Namespace) -> None:
    """Free beams: ours on vLLM, ``LLM.beam_search`` and ``generate``."""
    common = {"beams": options.beams, "count": options.peer_prompts}
    contenders = peers_of(options) | {"ours": ("decoded", common)}
    for batch in options.batches:
        contenders[batch] = ("generated", {**common, "size": None, "batch": batch})
    results = bench.best(contenders)
    print(f"Free beams, {results['ours']['count']} prompts, as many new tokens as 95 % of the titles need; prompts/s\n")
    names = ("`generate`", "its batch", "`LLM.beam_search`", "ours on vLLM", "ours / `LLM.beam_search`")
    rows: list[Row] = [("K", *names, "ours / `generate`", "GPU")]
    for width in options.beams:
        (generate, batch), (peer, _) = (fastest(results, who, width) for who in ("generate", "peer"))
        ours = results["ours"]["rates"][f"ours {width}"]
        rows.append((width, generate, batch, peer, ours, ours / peer, ours / generate, ""))
    table(*rows)


def transformers_table(bench: Bench, options: argparse.Namespace) -> None:
    """Ours on transformers against ``generate`` over the same trie."""
    contenders: Contenders = {}
    for size in options.catalogs:
        arguments = {"engine": "transformers", "size": size, "kinds": ("beam", "exact"), "beams": options.beams}
        contenders["ours", size] = ("searched", arguments)
        for batch in options.batches:
            contenders[size, batch] = ("generated", {"size": size, "batch": batch, "beams": options.beams})
    results = bench.best(contenders)
    print(f"transformers; prompts/s; the prefix function's share of the time is that at batch {CHECK_BATCH}\n")
    names = [f"`generate`, {batch} at once" for batch in options.batches]
    rows: list[Row] = [
        ("catalogue", "K", *names, "prefix function", "beam", "exact", "beam / fastest", "exact / fastest", "GPU")
    ]
    checks: list[Row] = [("catalogue", "K", "prompts", "differing prompts", "largest difference of scores, nats")]
    for size in options.catalogs:
        ours = results["ours", size]
        check = bench.once("checked", size=size, batch=CHECK_BATCH, beams=options.beams, count=options.prompts)
        for width in options.beams:
            rates = [results[size, batch]["rates"][f"generate {batch} {width}"] for batch in options.batches]
            mine = [ours["rates"][f"{kind} {width}"] for kind in ("beam", "exact")]
            ratios = [rate / max(rates) for rate in mine]
            rows.append((size, width, *rates, f"{check['shares'][str(width)]:.0%}", *mine, *ratios, ""))
            key = f"beam {width}"
            differing, largest = compare(ours["answers"][key], check["answers"][key])
            checks.append((size, width, check["count"], differing, f"{largest:.1e}"))
    table(*rows)
    print("\nOur beams against `generate`'s: items and their order\n")
    table(*checks)
    exactness_table(bench, options, {size: results["ours", size] for size in options.catalogs})


def exactness_table(bench: Bench, options: argparse.Namespace, ours: dict[int, dict[str, Any]]) -> None:
    """Beams and exact search against the ranking of all items."""
    names = ("found of the true best K, at most ten", "largest difference, nats", "tokens per prompt", "mass")
    rows: list[Row] = [("catalogue", "search", *names)]
    print("\nAgainst ranking all items\n")
    for size, result in ours.items():
        truth = bench.once("ranked", size=size, count=options.rank_prompts)
        count, best = truth["count"], list(zip(truth["best"], truth["logps"], strict=True))
        seconds = truth["seconds"]["rank"] / count
        print(
            f"- {size} items: {seconds:.2f} s per prompt, {count} prompts; the catalogue's mass is {truth['mass']:.3f}"
        )
        for label, answers in result["answers"].items():
            first, hits, largest = min(10, int(label.split()[1])), 0, 0.0
            for (leaves, logps), (true_leaves, true_logps) in zip(answers, best, strict=False):
                hits += len(set(leaves[:first]) & set(true_leaves[:first]))
                true = dict(zip(true_leaves, true_logps, strict=True))
                off = (abs(logp - true.get(leaf, logp)) for leaf, logp in zip(leaves, logps, strict=True))
                largest = max(largest, *off)
            share, tokens, mass = hits / (first * count), result["tokens"][label], result["mass"][label]
            rows.append((size, label, f"{share:.1%}", f"{largest:.1e}", f"{tokens:.0f}", f"{mass:.3f}"))
    print()
    table(*rows)


def compare(mine: Answers, theirs: Answers) -> tuple[int, float]:
    """Prompts whose items or their order differ, and the largest difference of the scores of common items."""
    differing, largest = 0, 0.0
    for (leaves, logps), (other_leaves, other_logps) in zip(mine, theirs, strict=True):
        differing += leaves != other_leaves
        other = dict(zip(other_leaves, other_logps, strict=True))
        for leaf, logp in zip(leaves, logps, strict=True):
            largest = max(largest, abs(logp - other.get(leaf, logp)))
    return differing, largest


def agree_table(bench: Bench, options: argparse.Namespace) -> None:
    """Our decoder on transformers against our decoder on vLLM."""
    print("The two engines; items and their order, scores in nats\n")
    rows: list[Row] = [
        ("catalogue", "search", "prompts", "differing prompts", "largest difference", "in catalogue, both")
    ]
    for size in options.catalogs:
        arguments = {"size": size, "kinds": KINDS, "beams": options.beams}
        one, two = (bench.once("searched", engine=engine, **arguments) for engine in ("transformers", "vllm"))
        for label, answers in one["answers"].items():
            differing, largest = compare(answers, two["answers"][label])
            share = min(one["in_catalog"][label], two["in_catalog"][label])
            rows.append((size, label, one["count"], differing, f"{largest:.1e}", f"{share:.1%}"))
    table(*rows)


def growth_table(bench: Bench, options: argparse.Namespace) -> None:
    """Catalogues up to a million items on transformers."""
    contenders: Contenders = {
        size: ("grown", {"size": size, "count": options.growth_prompts}) for size in options.growth
    }
    results = bench.best(contenders)
    smallest = results[options.growth[0]]["seconds"]
    print(f"Growth, ten answers, {results[options.growth[0]]['count']} prompts on transformers\n")
    names = ("items", "tokenize, s", "build, s", "tokens", "nodes", "MiB", "bytes / token", "exact, prompts/s")
    more = ("exact, time", "beam, prompts/s", "beam, time", "tokens, exact", "tokens, beam", "not proved", "GPU")
    rows: list[Row] = [(*names, *more)]
    for size, result in results.items():
        seconds, tokens = result["seconds"], result["num_tokens"]
        row: list[Any] = [size, seconds["tokenize"], seconds["build"], tokens, result["num_nodes"]]
        row += [result["num_bytes"] / 2**20, result["num_bytes"] / tokens]
        for kind in ("exact", "beam"):
            row += [result["rates"][kind], seconds[kind] / smallest[kind]]
        rows.append((*row, *(f"{result['tokens'][kind]:.0f}" for kind in ("exact", "beam")), result["unfinished"], ""))
    table(*rows)


def swap_table(bench: Bench, options: argparse.Namespace) -> None:
    """Adapters on both engines."""
    engines = ("vllm", "transformers")
    results = bench.best({engine: ("swapped", {"engine": engine}) for engine in engines})
    print("Seconds to start an engine, torch being imported, and to change its adapter (rank 16, all projections)\n")
    labels = ("start", "first load", "later swap")
    rows: list[Row] = [("engine", *labels, "left behind by 7 swaps, nats", "GPU")]
    for engine, result in results.items():
        rows.append((engine, *(f"{result['seconds'][label]:.3f}" for label in labels), f"{result['left']:.1e}", ""))
    table(*rows)


TABLES: dict[str, Callable[[Bench, argparse.Namespace], None]] = {
    "vllm": vllm_table,
    "transformers": transformers_table,
    "agree": agree_table,
    "growth": growth_table,
    "swap": swap_table,
    "free": free_table,
}
