"""Types of the fixtures that several folders share."""

from collections.abc import Callable

from sprec_ray.cluster.runs.run import RunOutcome
from sprec_ray.config.run import RunConfig

Make = Callable[..., RunConfig]
"""A configuration of a name and overrides."""
Train = Callable[[RunConfig], RunOutcome]
"""``train_selfplay``."""
