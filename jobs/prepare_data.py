"""Make a run's data to look at: ``python -m jobs.prepare_data configs/demo.yaml [section.key=value ...]``."""

from jobs.command import run_job
from sprec_ray.cluster.datasets import prepare_run_data
from sprec_ray.config import load_config


def main(arguments: list[str]) -> None:
    """Write the data of the configuration under ``<output_dir>/<name>/data`` and print its counts."""
    for name, count in prepare_run_data(load_config(arguments)).items():
        print(f"{name}: {count}")


if __name__ == "__main__":
    run_job(main)
