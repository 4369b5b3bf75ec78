"""A collaborative model's scores as arrays: ``python -m jobs.export_scores configs/demo.yaml [key=value ...]``."""

from jobs.command import run_job
from sprec_ray.config.load import load_config


def main(arguments: list[str]) -> None:
    """Train the model that ``collaborative`` describes where it is not yet, and say where its scores are."""
    config = load_config(arguments)
    from sprec_ray.cluster.runs.run import export_scores  # after the configuration is known to be good

    print(f"Scores: {export_scores(config)}")


if __name__ == "__main__":
    run_job(main)
