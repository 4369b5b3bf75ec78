"""The simulated memory of a step against real steps: ``python benchmarks/memory_plan.py [--threads 2]``.

Model and tokens of group_scoring.py on a CPU, in a process of its own for each row. Prints MiB above the loaded model
and its optimizer: simulated, held by tensors at most, and by how much the process grew. No two groups begin alike.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys

import torch
from group_scoring_ours import make_groups, make_model, optimizer_of, preference_step, with_lora

from sprec_ray.config.methods import PreferenceConfig
from sprec_ray.config.run import LoraConfig, TrainingConfig
from sprec_ray.training.memory import LiveBytes, plan_memory
from sprec_ray.training.packing import TokenGroup
from sprec_ray.training.phase import Phase
from sprec_ray.training.scoring import ResponseScorer

ROWS = [(negatives, size, recompute) for recompute in (False, True) for negatives in (1, 10) for size in (1, 4, 16)]
PROMPT, RESPONSE = 220, 12
MIB = 2**20


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", help="internal: a row as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        print(json.dumps(measured(*json.loads(options.measure))))
        return
    print(
        "| N | micro-batch | checkpointing | simulated | tensors | process | simulated / tensors | process / tensors |"
    )
    print("|" + "---|" * 8)
    for row in ROWS:
        command = [sys.executable, __file__, "--threads", str(options.threads), "--measure", json.dumps(row)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        tensors, process = json.loads(done.stdout.strip().rsplit("\n", 1)[-1])
        expected = simulated(*row)
        cells = [f"{number:.1f}" for number in (expected, tensors, process)]
        cells += [f"{number / tensors:.2f}" for number in (expected, process)]
        print("| " + " | ".join([*map(str, row), *cells]) + " |", flush=True)


def simulated(num_negatives: int, size: int, recompute: bool) -> float:
    """MiB beside model and optimizer, by the plan."""
    phase = Phase(
        model_path="",
        dtype="float32",
        out="",
        seed=0,
        training=TrainingConfig(gradient_checkpointing=recompute),
        optimization=PreferenceConfig(),
        lora=LoraConfig(rank=16, alpha=32),
    )
    group = TokenGroup((1,) * PROMPT, ((1,) * RESPONSE,) * (1 + num_negatives))
    return plan_memory(phase, make_model().config, group, num_workers=1, on_gpu=False).activations(size) / MIB


def measured(num_negatives: int, size: int, recompute: bool) -> tuple[float, float]:
    """MiB that tensors hold at most in a step, and MiB by which the process grows in it."""
    scorer = ResponseScorer(with_lora(make_model()), share_prompts=True).train()
    if recompute:
        scorer.causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = optimizer_of(scorer.model)
    ids = iter(range(4, 5000))
    groups = [
        TokenGroup((next(ids),) * PROMPT, tuple((next(ids),) * RESPONSE for _ in range(1 + num_negatives)))
        for _ in range(size)
    ]
    preference_step(scorer, make_groups(1, 1), optimizer)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    preference_step(scorer, groups, optimizer)
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    optimizer.zero_grad(set_to_none=False)
    known = [tensor for weight in scorer.parameters() for tensor in (weight, weight.grad) if tensor is not None]
    state = [tensor for moments in optimizer.state.values() for tensor in moments.values()]
    with LiveBytes([*known, *scorer.buffers(), *state]) as live:
        preference_step(scorer, groups, optimizer)
    return live.peak / MIB, process / 1024


if __name__ == "__main__":
    main()
