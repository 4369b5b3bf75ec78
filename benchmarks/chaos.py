"""Kill one random process of a run at a random moment, again and again: ``python -m benchmarks.chaos kills=30``.

Every disturbed run must end with the adapter and the metrics of an undisturbed one, in the same command or in the
next, and leave no process. A process is chosen at random among all of the run's: driver, Ray's own, training worker,
decoder. Other arguments are those of ``jobs.train_selfplay``; the small Llama is pre-trained once, by the undisturbed
run, unless ``pretraining=true`` gives every run an output folder of its own.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from sprec_ray.storage.artifacts import read_json

DEMO = (
    *("configs/demo.yaml", "data.num_train=512", "data.num_test=100", "data.num_valid=32"),
    *("model.scratch.num_epochs=4", "selfplay.num_examples=192", "training.save_steps=5"),
)
"""The demo with a quarter of its rows."""

TIMEOUT_S = 600.0
MARK = "SPREC_RAY_CHAOS"

KINDS = {
    "ray::DecoderActor": "decoder",
    "ray::_RayTrainWorker": "training worker",
    "ray::RayTrainWorker": "training worker",
    "ray::_TrainController": "Train's controller",
    "ray::_Mailbox": "mailbox",
    "gcs_server": "GCS",
    "raylet/raylet": "raylet",
    "jobs.train_selfplay": "driver",
    "ray::IDLE": "idle Ray worker",
    "ray::": "Ray actor of Train or Data",
}
"""What a command line contains, and the name of such a process; the first that fits counts."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one kill did."""

    victim: str
    after_s: float
    stage: str
    """The folder that was written last."""
    restarts: int
    """How often the command had to be given again."""
    extra_s: float
    """Seconds beyond the undisturbed run."""
    same: bool
    num_orphans: int


def processes(mark: str) -> dict[int, str]:
    """The running processes that inherited the mark, with their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            except OSError:
                continue
    return {pid: command for pid, command in found.items() if command}  # a zombie has none


def kind_of(command: str) -> str:
    """The name of a process."""
    return next((name for part, name in KINDS.items() if part in command), "Ray's other services")


def start(arguments: list[str], mark: str, log: Path) -> subprocess.Popen[bytes]:
    """The job, in a process group of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {MARK: mark}
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.train_selfplay", *arguments],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def result_of(folder: Path) -> tuple[list[bytes], object]:
    """The adapters of a finished run and its metrics."""
    adapters = sorted(folder.glob("*/adapter_model.safetensors")) + sorted(folder.glob("*/*/adapter_model.safetensors"))
    return [adapter.read_bytes() for adapter in adapters], read_json(folder / "results.json")["results"]


def last_stage(folder: Path) -> str:
    """The stage that was being filled, by the time of its files."""
    files = [file for file in folder.rglob("*") if file.is_file() and "ray-train" not in file.parts]
    newest = max(files, key=lambda file: file.stat().st_mtime, default=folder / "nothing")
    return str(newest.parent.relative_to(folder)).removesuffix("/partial").removesuffix("/partial/chunks")


def wait(job: subprocess.Popen[bytes], mark: str) -> int:
    """The exit code; a job that does not end is killed with all its processes and counts as -1."""
    try:
        return job.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        for pid in processes(mark):
            os.kill(pid, signal.SIGKILL)
        job.wait()
        return -1


def orphans(mark: str) -> dict[int, str]:
    """What is left of a run two minutes after its driver ended: Ray's agents try a minute to tell the dead GCS."""
    deadline = time.monotonic() + 120
    while (left := processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.5)
    for command in left.values():
        print(f"orphan: {command}")
    return left


def disturb(arguments: list[str], folder: Path, *, after_s: float, rng: random.Random, log: Path) -> Outcome:
    """Run the job, kill one of its processes after so many seconds, and give the command again until it is done."""
    mark = uuid.uuid4().hex
    begun = time.monotonic()
    job = start(arguments, mark, log)
    time.sleep(after_s)
    victim, stage = "none: it was done", last_stage(folder) if folder.is_dir() else "start"
    while job.poll() is None:
        pid, command = rng.choice(sorted(processes(mark).items()))
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        victim = kind_of(command)
        break
    code, restarts, num_orphans = wait(job, mark), 0, 0
    while code != 0 and restarts < 3:
        num_orphans += len(left := orphans(mark))
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        restarts += 1
        job = start(arguments, mark, log)
        code = wait(job, mark)
    num_orphans += len(orphans(mark))
    return Outcome(victim, after_s, stage, restarts, time.monotonic() - begun, code == 0, num_orphans)


def main(arguments: list[str]) -> None:
    """Print a line for every kill, then the table."""
    own = {"kills": "30", "seed": "0", "pretraining": "false"}
    own |= dict(argument.split("=", 1) for argument in arguments if argument.partition("=")[0] in own)
    given = [argument for argument in arguments if argument.partition("=")[0] not in own]
    rng = random.Random(int(own["seed"]))
    base = Path(tempfile.mkdtemp(prefix="chaos-"))
    log = base / "log.txt"
    print(f"logs: {log}")

    def command(name: str, output: Path) -> list[str]:
        return [*(given or DEMO), f"output_dir={output}", f"name={name}"]

    shared = base / "runs"
    wait(start(command("first", shared), "first", log), "first")  # pre-trains the small Llama
    begun = time.monotonic()
    first = base / "alone" if own["pretraining"] == "true" else shared
    assert wait(start(command("undisturbed", first), "undisturbed", log), "undisturbed") == 0, f"see {log}"
    duration, expected = time.monotonic() - begun, result_of(first / "undisturbed")
    print(f"undisturbed: {duration:.0f} s")
    outcomes = []
    for number in range(int(own["kills"])):
        output = base / str(number) if own["pretraining"] == "true" else shared
        folder = output / f"run-{number}"
        outcome = disturb(command(folder.name, output), folder, after_s=rng.uniform(0.5, duration), rng=rng, log=log)
        same = outcome.same and result_of(folder) == expected
        outcomes.append(
            Outcome(
                outcome.victim,
                outcome.after_s,
                outcome.stage,
                outcome.restarts,
                outcome.extra_s - duration,
                same,
                outcome.num_orphans,
            )
        )
        print(outcomes[-1], flush=True)
    print_table(outcomes)


def print_table(outcomes: list[Outcome]) -> None:
    """Per kind of process: kills, recovered within the command, recovered by the next, same result, orphans."""
    print("| process | kills | went on | started again | same adapters and metrics | orphans | most extra |")
    print("|---|---|---|---|---|---|---|")
    kinds = [*(kind for kind, _ in Counter(outcome.victim for outcome in outcomes).most_common()), "all"]
    for kind in kinds:
        rows = [outcome for outcome in outcomes if kind in {outcome.victim, "all"}]
        went_on = sum(row.restarts == 0 for row in rows)
        same, left = sum(row.same for row in rows), sum(row.num_orphans for row in rows)
        extra_s = max(row.extra_s for row in rows)
        print(f"| {kind} | {len(rows)} | {went_on} | {len(rows) - went_on} | {same} | {left} | {extra_s:.0f} s |")


if __name__ == "__main__":
    main(sys.argv[1:])
