"""Print what fits: ``python -m jobs.plan_memory CONFIG.yaml gpu_memory_gib=24 [num_negatives=1,5] [key=value ...]``."""

from jobs.command import run_job
from sprec_ray.config.load import load_config


def main(arguments: list[str]) -> None:
    """Print the memory of SFT and of preference training at several N, and the largest micro-batch of each."""
    own = {"gpu_memory_gib": "", "num_negatives": ""}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in own:
            own[key] = value
    config = load_config([argument for argument in arguments if argument.partition("=")[0] not in own])
    from sprec_ray.training.plan_table import plan_table  # after the configuration is known to be good

    print(plan_table(config, memory_gib=own["gpu_memory_gib"], num_negatives=own["num_negatives"]))


if __name__ == "__main__":
    run_job(main)
