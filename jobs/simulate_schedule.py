"""Predict an iteration's time: ``python -m jobs.simulate_schedule RUN_OR_YAML [gpus=4,8,64,512] [key=value]``."""

from jobs.command import run_job


def main(arguments: list[str]) -> None:
    """Print iteration times by placement and number of GPUs, from the stage times of a run or of a YAML file."""
    from sprec_ray.schedule.table import schedule_table

    print(schedule_table(arguments))


if __name__ == "__main__":
    run_job(main)
