"""Measure a finished run on its validation rows: ``python -m jobs.evaluate CONFIG.yaml [section.key=value ...]``."""

from jobs.command import run_job
from sprec_ray.config.load import load_config


def main(arguments: list[str]) -> None:
    """Print the table of the run's policies on the validation rows; the arguments are those of the run."""
    config = load_config(arguments)
    from sprec_ray.cluster.runs.run import address_of, evaluate_on_valid  # after the configuration is known to be good
    from sprec_ray.reports.tables import format_table

    print(format_table(evaluate_on_valid(config)))
    print(f"Written to {address_of(config, 'results-valid.json')}")


if __name__ == "__main__":
    run_job(main)
