"""Simulated iterations against real ones: ``python -m benchmarks.scheduler_simulation out=FOLDER cores=1``.

A small run with one worker and one decoder, in turns, gives the stage times; from them alone the other runs are
predicted. Every process computes with one thread, so pin the command to as many cores as ``cores`` says
(``taskset -c 2``). Finished runs of an earlier call are not done again. Then the iteration of the paper's size is
simulated on more devices, with the same stage times: those of a small Llama on a CPU, not of a GPU.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from sprec_ray.schedule.simulation import Layout, Placement, Workload, scale, simulate, stops_scaling
from sprec_ray.schedule.stage_times import iteration_seconds, measure_run

RUN = (
    *("configs/demo.yaml", "decoding.engine=transformers", "training.num_threads=1", "data.num_train=512"),
    *("data.num_test=256", "model.scratch.num_epochs=2", "sft.num_epochs=1", "evaluation.base=false"),
    *("selfplay.num_iterations=3", "selfplay.num_examples=256", "decoding.chunk_size=32"),
)
PAPER = Workload(num_examples=2048, num_groups=2048, num_test=1000, chunk_size=128, sft_batch=64, preference_batch=32)
"""An iteration of configs/presets/paper.yaml."""
PLACEMENTS: tuple[Placement, ...] = ("split", "colocate", "sequential")
NUM_GPUS = (4, 8, 64, 512)


@dataclass(frozen=True, slots=True, kw_only=True)
class Real:
    """A run to compare with."""

    placement: Placement
    count: int
    """Workers, and decoders."""

    @property
    def name(self) -> str:
        """The run's folder."""
        return f"{self.placement}-{self.count}"


CALIBRATION = Real(placement="colocate", count=1)
RUNS = (
    CALIBRATION,
    Real(placement="colocate", count=2),
    Real(placement="split", count=1),
    Real(placement="split", count=2),
    Real(placement="sequential", count=1),
)


def run(real: Real, out: Path) -> None:
    """Do the run, unless it is done."""
    command = [sys.executable, "-m", "jobs.train_selfplay", *RUN, f"output_dir={out}", f"name={real.name}"]
    command += [f"decoding.placement={real.placement}", f"training.num_workers={real.count}"]
    subprocess.run([*command, f"decoding.num_decoders={real.count}"], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Print both tables."""
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    out, cores = Path(given["out"]).resolve(), float(given["cores"])
    for real in RUNS:
        run(real, out)
    measured = measure_run(out / CALIBRATION.name)
    print("| placement | workers | decoders | predicted s | measured s | error |\n|---|---|---|---|---|---|")
    for real in RUNS:
        layout = Layout(placement=real.placement, num_workers=real.count, num_decoders=real.count, cores=cores)
        predicted = simulate(measured.times, measured.work, layout).seconds
        seconds = iteration_seconds(out / real.name)
        error = "calibration" if real == CALIBRATION else f"{predicted / seconds - 1:+.0%}"
        cells = [real.placement, real.count, real.count, f"{predicted:.1f}", f"{seconds:.1f}", error]
        print("| " + " | ".join(map(str, cells)) + " |")
    print(f"\n{measured.times}\n")
    print("| placement | devices | workers | decoders | iteration s | speed-up | busy | spent on |")
    print("|---|---|---|---|---|---|---|---|")
    one = simulate(measured.times, PAPER, Layout(placement="colocate", num_workers=1, num_decoders=1)).seconds
    for placement in PLACEMENTS:
        for count in NUM_GPUS:
            iteration = scale(measured.times, PAPER, placement, count)
            layout, seconds = iteration.layout, iteration.seconds
            terms = ", ".join(f"{term} {s / seconds:.0%}" for term, s in list(iteration.terms.items())[:3])
            cells = [placement, count, layout.num_workers, layout.num_decoders, f"{seconds:.1f}"]
            cells += [f"{one / seconds:.1f}", f"{iteration.utilisation:.0%}", terms]
            print("| " + " | ".join(map(str, cells)) + " |")
    for placement in PLACEMENTS:
        count, term = stops_scaling(measured.times, PAPER, placement)
        print(f"{placement}: from {count} devices on twice as many save less than 10 %; most goes to {term}")


if __name__ == "__main__":
    main()
