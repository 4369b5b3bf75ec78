"""Run SPRec: ``python -m jobs.train_selfplay configs/demo.yaml [section.key=value ...]``."""

from jobs.command import run_job
from sprec_ray.config.load import load_config


def main(arguments: list[str]) -> None:
    """Run or continue what the configuration describes, and print its table."""
    config = load_config(arguments)
    # After the configuration is known to be good: importing Ray and torch takes seconds.
    from sprec_ray.cluster.runs.run import train_selfplay
    from sprec_ray.reports.tables import format_table

    outcome = train_selfplay(config)
    if outcome.was_finished:
        print("This run is finished; nothing was done. Delete its folder or choose another name= to run again.")
    print(format_table(outcome.results))
    print(f"Report: {outcome.address}")


if __name__ == "__main__":
    run_job(main)
