"""One reader per kind of data; each takes the ``data`` section and returns a ``SourceData``."""

from collections.abc import Callable

from sprec_ray.config.data import DataConfig
from sprec_ray.data.sources.demo import read_demo
from sprec_ray.data.sources.dmpo import read_dmpo
from sprec_ray.data.sources.huggingface import read_huggingface
from sprec_ray.data.sources.llara import read_llara
from sprec_ray.data.sources.movielens import read_movielens
from sprec_ray.data.sources.source import SourceData
from sprec_ray.data.sources.sprec import read_sprec

SOURCES: dict[str, Callable[[DataConfig], SourceData]] = {
    "demo": read_demo,
    "sprec": read_sprec,
    "movielens": read_movielens,
    "huggingface": read_huggingface,
    "dmpo": read_dmpo,
    "llara": read_llara,
}
