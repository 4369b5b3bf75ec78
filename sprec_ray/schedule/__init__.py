"""An iteration's schedule on any number of GPUs, simulated from measured times. Starts nothing."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "simulation": "Iteration Layout Workload simulate",
        "stage_times": "measure_run",
        "table": "schedule_table",
    },
)
