"""Self-play preference training for LLM recommenders on Ray.

The names here are for notebooks and other programs; ``python -m jobs.<verb>`` is the command line over the same code.
Importing the package imports no framework: each name brings what it needs when it is first used (docs/python.md).
"""

from typing import TYPE_CHECKING

from sprec_ray.lazy import hand_on

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "api": "CatalogAnswer RunResults read_run search_catalog",
        "cluster.runs.run": "RunOutcome train_selfplay",
        "config.load": "load_config",
        "config.run": "ConfigError RunConfig",
        "evaluation.predictions": "score_predictions",
    },
)

if TYPE_CHECKING:
    from sprec_ray.api import CatalogAnswer as CatalogAnswer
    from sprec_ray.api import RunResults as RunResults
    from sprec_ray.api import read_run as read_run
    from sprec_ray.api import search_catalog as search_catalog
    from sprec_ray.cluster.runs.run import RunOutcome as RunOutcome
    from sprec_ray.cluster.runs.run import train_selfplay as train_selfplay
    from sprec_ray.config.load import load_config as load_config
    from sprec_ray.config.run import ConfigError as ConfigError
    from sprec_ray.config.run import RunConfig as RunConfig
    from sprec_ray.evaluation.predictions import score_predictions as score_predictions
