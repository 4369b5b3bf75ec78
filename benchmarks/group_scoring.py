"""Group scoring against TRL 1.16, against one row per response, and against transformers' own numbers.

``python benchmarks/group_scoring.py --threads 2 [--only dpo negatives sft memory exact]``, or ``--only A B C D E``: one
Llama of 15 M parameters with random weights and LoRA on all projections, float32, AdamW; the same tokens for everybody.
Each contender runs in a process of its own, in turn, ``--rounds`` times; its fastest round counts. Prints Markdown
tables. On a machine that does other work pin it (``taskset -c 2,3``).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from group_scoring_ours import LOSSES, computed_tokens, exactness, ours, ours_sft, peak_memory
from group_scoring_trl import first_losses, trl_dpo, trl_sft

CONTENDERS: dict[str, Callable[..., Any]] = {
    "ours": ours,
    "ours_sft": ours_sft,
    "trl_dpo": trl_dpo,
    "trl_sft": trl_sft,
    "peak_memory": peak_memory,
    "computed_tokens": computed_tokens,
    "exactness": exactness,
    "first_losses": first_losses,
}

TRL_BATCHES = (1, 2, 4, 8)
SFT_BATCHES = (4, 8, 16)
NEGATIVES = (3, 5, 10, 20)


def main() -> None:
    """Run the comparisons and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    tables = {"dpo": dpo, "negatives": negatives, "sft": sft, "memory": memory, "exact": exact}
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    letters = dict(zip("ABCDE", tables, strict=True))
    parser.add_argument(
        "--only", nargs="+", choices=tables, default=list(tables), type=lambda name: letters.get(name, name)
    )
    parser.add_argument("--measure", help="internal: a contender and its arguments as JSON")
    options = parser.parse_args()
    if options.measure:
        name, arguments = json.loads(options.measure)
        print(json.dumps(CONTENDERS[name](options.threads, **arguments)))
        return
    for name in options.only:
        tables[name](options.threads, options.rounds)
        print(flush=True)


def measure(threads: int, name: str, **arguments: Any) -> Any:
    """What a contender returns in a fresh process."""
    command = [sys.executable, __file__, "--threads", str(threads), "--measure", json.dumps([name, arguments])]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{name} {arguments} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().rsplit("\n", 1)[-1])


def best(rounds: int, threads: int, contenders: dict[Any, tuple[str, dict[str, Any]]]) -> dict[Any, float]:
    """Examples per second of each contender, its best of several rounds in which all take their turn."""
    rates: dict[Any, float] = {}
    for _ in range(rounds):
        for key, (name, arguments) in contenders.items():
            rates[key] = max(rates.get(key, 0.0), measure(threads, name, **arguments)["examples_per_s"])
    return rates


def table(*rows: tuple[Any, ...]) -> None:
    """Print rows, the first of which names the columns."""
    for number, row in enumerate(rows):
        print("| " + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row) + " |")
        if number == 0:
            print("|" + "---|" * len(row))


def dpo(threads: int, rounds: int) -> None:
    """N = 1 against TRL's DPOTrainer at every batch size; a step includes reference scoring."""
    contenders = {
        ("ours", size): ("ours", {"num_negatives": 1, "batch_size": size, "share": True}) for size in TRL_BATCHES
    }
    contenders |= {("plain", 4): ("ours", {"num_negatives": 1, "batch_size": 4, "share": False})}
    for size in TRL_BATCHES:
        contenders["trl", size] = ("trl_dpo", {"batch_size": size})
        contenders["ahead", size] = ("trl_dpo", {"batch_size": size, "precompute": True})
    rates = best(rounds, threads, contenders)
    fastest = max(rates[who, size] for who in ("trl", "ahead") for size in TRL_BATCHES)
    print("N = 1, preference step with reference scoring, groups per batch and step; examples/s")
    table(
        ("batch", "TRL `DPOTrainer`", "TRL, reference first", "ours", "ours / TRL", "ours / fastest TRL", "GPU"),
        *(
            (size, trl, ahead, mine, mine / max(trl, ahead), mine / fastest, "")
            for size in TRL_BATCHES
            for trl, ahead, mine in [tuple(rates[who, size] for who in ("trl", "ahead", "ours"))]
        ),
    )
    print(f"\nOur plain path, one row per response, batch 4: {rates['plain', 4]:.2f} examples/s.")


def negatives(threads: int, rounds: int) -> None:
    """More negatives against one row per response."""
    contenders: dict[Any, tuple[str, dict[str, Any]]] = {}
    for count in NEGATIVES:
        for size in (1, 2, 4):
            contenders[count, "plain", size] = ("ours", {"num_negatives": count, "batch_size": size, "share": False})
        contenders[count, "ours", 4] = ("ours", {"num_negatives": count, "batch_size": 4, "share": True})
    rates = best(rounds, threads, contenders)
    print("Preference step with reference scoring, softmax_dpo; examples/s")
    rows: list[tuple[Any, ...]] = [
        ("N", "rows, batch 4", "rows, fastest batch", "ours, batch 4", "ours / rows", "ours / fastest rows", "GPU")
    ]
    for count in NEGATIVES:
        same, ours = rates[count, "plain", 4], rates[count, "ours", 4]
        fastest = max(rates[count, "plain", size] for size in (1, 2, 4))
        rows.append((count, same, fastest, ours, ours / same, ours / fastest, ""))
    table(*rows)


def sft(threads: int, rounds: int) -> None:
    """SFT on Goodreads' lengths against TRL's SFTTrainer."""
    contenders: dict[Any, tuple[str, dict[str, Any]]] = {}
    for size in SFT_BATCHES:
        contenders["ours", size] = ("ours_sft", {"batch_size": size})
        contenders["trl", size] = ("trl_sft", {"batch_size": size})
        contenders["free", size] = ("trl_sft", {"batch_size": size, "padding_free": True})
        contenders["packed", size] = ("trl_sft", {"batch_size": size // 4, "packing": True})
    rates = best(rounds, threads, contenders)
    fastest = max(rate for (who, _), rate in rates.items() if who != "ours")
    print("SFT, completion only, lengths of Goodreads rows; examples/s")
    names = ("TRL `SFTTrainer`", "TRL, padding-free", "TRL, packed", "ours")
    rows: list[tuple[Any, ...]] = [("batch", *names, "ours / TRL", "ours / fastest TRL", "GPU")]
    for size in SFT_BATCHES:
        *trl, ours = (rates[who, size] for who in ("trl", "free", "packed", "ours"))
        rows.append((size, *trl, ours, ours / max(trl), ours / fastest, ""))
    table(*rows)
    print("\nPacked: batch / 4 rows of 1,024 tokens, about five examples each.\n")
    padding(threads)


def padding(threads: int) -> None:
    """What batches of real lengths compute besides their tokens."""
    print("Padding of rows of Goodreads' lengths, and tokens computed per example; ours pads nothing on a CPU")
    rows: list[tuple[Any, ...]] = [("batch", "padding of rows", "padding, ours", "tokens of rows", "tokens, ours")]
    for size in SFT_BATCHES:
        share, padded, packed = measure(threads, "computed_tokens", batch_size=size)
        rows.append((size, f"{share:.1%}", "0", f"{padded:.0f}", f"{packed:.0f}"))
    table(*rows)


def memory(threads: int, rounds: int) -> None:
    """Peak memory of a step at N = 10."""
    print("Peak resident memory of one step above the loaded model, batch 4, N = 10; MiB")
    found = {share: min(measure(threads, "peak_memory", share=share) for _ in range(rounds)) for share in (False, True)}
    table(("rows", "ours", "ours / rows", "GPU"), (found[False], found[True], found[True] / found[False], ""))


def exact(threads: int, rounds: int) -> None:
    """Loss and gradient, float32."""
    found = measure(threads, "exactness")
    print("Relative difference of loss and gradient, float32, 4 groups with N = 3 (1 for pairwise losses)")
    rows = [(name, *(f"{value:.1e}" for value in found[name])) for name in LOSSES]
    table(("loss", "loss, plain path", "gradient, plain path", "loss, transformers", "gradient, transformers"), *rows)
    print("\nLoss in the first and second step on one batch, from the same adapter; relative difference to TRL's")
    rows = [("", "TRL, step 1", "TRL, step 2", "ours, step 1", "ours, step 2", "difference 1", "difference 2")]
    for name, losses in measure(threads, "first_losses").items():
        off = [abs(mine - trl) / trl for trl, mine in zip(losses[:2], losses[2:], strict=True)]
        rows.append((name, *(f"{loss:.6f}" for loss in losses), *(f"{one:.1e}" for one in off)))
    table(*rows)


if __name__ == "__main__":
    main()
