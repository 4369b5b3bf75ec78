"""The memory planner against the peak that a preference step really takes.

``python benchmarks/memory_plan.py [--threads 2]``: model and tokens of group_scoring.py on a CPU, a process of its own
for each row. Prints MiB above the loaded model: planned, allocated at most, and by how much the process grew.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from itertools import accumulate

import torch
from group_scoring_ours import make_groups, make_model, optimizer_of, preference_step, with_lora
from torch.profiler import ProfilerActivity, profile

from sprec_ray.config import LoraConfig, PreferenceConfig, TrainingConfig
from sprec_ray.training.memory import plan_memory
from sprec_ray.training.packing import TokenGroup
from sprec_ray.training.phase import Phase
from sprec_ray.training.scoring import ResponseScorer

ROWS = [
    (negatives, size, checkpointing) for checkpointing in (False, True) for negatives in (1, 10) for size in (4, 16)
]


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
    print("| N | micro-batch | checkpointing | planned | allocated | planned / allocated | process |")
    print("|" + "---|" * 7)
    for row in ROWS:
        command = [sys.executable, __file__, "--threads", str(options.threads), "--measure", json.dumps(row)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        allocated, grown = json.loads(done.stdout.strip().rsplit("\n", 1)[-1])
        expected = planned(*row)
        cells = (*row, f"{expected:.0f}", f"{allocated:.0f}", f"{expected / allocated:.2f}", f"{grown:.0f}")
        print("| " + " | ".join(map(str, cells)) + " |")


def planned(num_negatives: int, size: int, checkpointing: bool) -> float:
    """MiB that the plan adds to model and adapter."""
    phase = Phase(
        model_path="",
        dtype="float32",
        out="",
        seed=0,
        training=TrainingConfig(gradient_checkpointing=checkpointing),
        optimization=PreferenceConfig(),
        lora=LoraConfig(rank=16, alpha=32),
    )
    group = TokenGroup((1,) * 220, ((1,) * 12,) * (1 + num_negatives))
    plan = plan_memory(phase, make_model().config, group, num_workers=1)
    return (plan.peak(size) - plan.weights - plan.trained) / 2**20


def measured(num_negatives: int, size: int, checkpointing: bool) -> tuple[float, float]:
    """MiB allocated at most in a step, and MiB by which the peak of the resident memory rises in one before it."""
    scorer = ResponseScorer(with_lora(make_model()), share_prompts=True)
    if checkpointing:
        scorer.causal_lm.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = optimizer_of(scorer.model)
    groups = make_groups(size, num_negatives, instruction=0)
    preference_step(scorer, [TokenGroup(groups[0].prompt[:8], groups[0].responses[:2])], optimizer)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    preference_step(scorer, groups, optimizer)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        preference_step(scorer, groups, optimizer)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(accumulate(sizes)) / 2**20, grown / 1024


if __name__ == "__main__":
    main()
