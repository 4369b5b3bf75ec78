"""What a sweep costs against its trials run separately: ``python benchmarks/sweep_cost.py SWEEP out=FOLDER [...]``.

The small Llama is pre-trained before anything is timed, and both sides start from it. Everything else is timed as a
user pays for it: whole commands, with the start of Python and Ray. Both sides measure policies on the test rows.

``only=KEY=VALUE`` runs only the separate runs of one value and scales their time to all, for settings that change no
run's cost, as ``only=preference.beta=0.1``; it may be given for several keys. Further
``section.key=value`` go to the sweep.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sprec_ray.config.load import scalar
from sprec_ray.config.sweep import SweepConfig, Trial, load_sweep, planned_trials, trial_command
from sprec_ray.reports.sweep.results import read_sweep
from sprec_ray.storage.timeline import read_timeline

KINDS = ("launch", "load", "compute", "decode", "evaluate")


def main(arguments: list[str]) -> None:
    """Time both sides and print them as Markdown."""
    file, out, only, rest = _arguments(arguments)
    rest = [*rest, "split=test"]
    sweep = load_sweep([file, *rest, f"output_dir={out / 'separate'}"])
    trials = planned_trials(sweep)
    chosen = [trial for trial in trials if only.items() <= trial.parameters.items()]
    _make_model(sweep, trials[0], out)
    separate_s = [_timed([sys.executable, *_separate(sweep, trial)]) for trial in chosen]
    sweep_s = _timed([sys.executable, "-m", "jobs.tune", file, *rest, f"output_dir={out / 'sweep'}"])
    print(_table(sweep, out, chosen, sweep_s, separate_s, len(trials)))


def _arguments(arguments: list[str]) -> tuple[str, Path, dict[str, Any], list[str]]:
    file, *rest = arguments
    pairs = [argument.split("=", 1)[1].partition("=") for argument in rest if argument.startswith("only=")]
    (out,) = (Path(argument.removeprefix("out=")) for argument in rest if argument.startswith("out="))
    kept = [argument for argument in rest if not argument.startswith(("only=", "out="))]
    return file, out.resolve(), {key: scalar(value) for key, _, value in pairs}, kept


def _make_model(sweep: SweepConfig, trial: Trial, out: Path) -> None:
    """Pre-train the small Llama and put it where both sides look for it."""
    made = out / "pretrained"
    _timed(
        [sys.executable, *_separate(sweep, trial), f"output_dir={made}", "selfplay.num_iterations=0", "name=pretrained"]
    )
    for side in ("sweep", "separate"):
        for model in (made / "cache").glob("model-*"):
            shutil.copytree(model, out / side / "cache" / model.name, dirs_exist_ok=True)


def _separate(sweep: SweepConfig, trial: Trial) -> list[str]:
    return shlex.split(trial_command(sweep, trial))[1:]


def _timed(command: list[str]) -> float:
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def _table(
    sweep: SweepConfig, out: Path, chosen: list[Trial], sweep_s: float, separate_s: list[float], num_trials: int
) -> str:
    trials = read_sweep(out / "sweep" / sweep.name).trials
    spans = [span for trial in chosen for span in read_timeline(out / "separate" / f"{sweep.name}_{trial.name}")]
    all_s = sum(separate_s) * num_trials / len(chosen)
    scaled = "" if len(chosen) == num_trials else f" ({len(chosen)} measured, {sum(separate_s):.0f} s)"
    spent = [
        (
            kind,
            sum(trial.seconds.get(kind, 0.0) for trial in trials),
            sum(span.duration_s for span in spans if span.kind == kind) * num_trials / len(chosen),
        )
        for kind in KINDS
    ]
    return "\n".join(
        [
            f"| seconds | sweep of {num_trials} | {num_trials} separate runs{scaled} | ratio |",
            "|---|---|---|---|",
            f"| **wall clock** | {sweep_s:.0f} | {all_s:.0f} | **{sweep_s / all_s:.2f}** |",
            *(
                f"| {kind} | {ours:.0f} | {theirs:.0f} | {ours / max(theirs, 1e-9):.2f} |"
                for kind, ours, theirs in spent
            ),
            "",
            "Separate runs: " + ", ".join(f"{trial.name} {s:.0f}" for trial, s in zip(chosen, separate_s, strict=True)),
        ]
    )


if __name__ == "__main__":
    main(sys.argv[1:])
