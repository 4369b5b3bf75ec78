"""Make a run's data to look at: ``python -m jobs.prepare_data configs/demo.yaml [section.key=value ...]``."""

from jobs.command import run_job
from sprec_ray.config.load import load_config


def main(arguments: list[str]) -> None:
    """Write the data of the configuration under ``<output_dir>/<name>/data`` and print its counts."""
    config = load_config(arguments)
    from sprec_ray.cluster.runs.run import address_of, prepare_run  # after the configuration is known to be good

    _, counts = prepare_run(config)
    for name, count in counts.items():
        print(f"{name}: {count}")
    print(f"Data: {address_of(config, 'data')}")


if __name__ == "__main__":
    run_job(main)
