"""Run a sweep: ``python -m jobs.tune configs/sweeps/beta_negatives.yaml [key=value ...]``."""

import sys

from jobs.command import run_job
from sprec_ray.config.sweep import load_sweep


def main(arguments: list[str]) -> None:
    """Run or continue the sweep and say what was chosen; exits with 1 when trials failed."""
    sweep = load_sweep(arguments)
    from sprec_ray.cluster.studies.tuning import tune_sweep  # after the sweep is known to be good

    outcome = tune_sweep(sweep)
    print(f"Chosen by {sweep.metric} on the {sweep.split} rows: {outcome.data.chosen or 'no trial has finished'}")
    print(f"Report: {outcome.report}")
    if outcome.num_failed:
        failed = f"{outcome.num_failed} of {len(outcome.data.trials)} trials failed; the report says why"
        print(f"error: {failed}. The same command tries them again.", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run_job(main)
