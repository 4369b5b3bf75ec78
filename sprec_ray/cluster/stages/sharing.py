"""Stages that runs of one ``output_dir`` share, kept under names made of everything that they depend on.

The seed of a stage derives from the run's seed and the stage's place in the run directory. So runs that agree in the
settings that a stage depends on fill it with the same bytes, and one of them need do it only once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from pathlib import Path
from typing import IO, Any

from sprec_ray import __version__
from sprec_ray.config.load import config_to_dict, flatten
from sprec_ray.config.run import RunConfig
from sprec_ray.decoding.engines.make import resolve_engine
from sprec_ray.evaluation.choices import CANDIDATE_METRICS
from sprec_ray.evaluation.pairs import PAIR_METRICS
from sprec_ray.metrics.compute import METRICS
from sprec_ray.storage.artifacts import MARKER, ROWS_FILE, Stage, read_json, take_lock, write_json

logger = logging.getLogger(__name__)

ORIGIN = "shared.json"
"""In a stage that was taken from another run: the name and folder of that run."""

WITHOUT_EFFECT = (
    "name",
    "output_dir",
    "share_stages",
    "selfplay.num_iterations",
    "training.cpus_per_worker",
    "training.max_failures",
    "training.save_steps",
    "decoding.placement",
    "evaluation.base",
)
"""Settings that change no byte of a stage."""

_POLICY = ("data.", "model.", "training.", "seed", "sft.")
_ROLLOUTS = (
    *_POLICY,
    "decoding.",
    *(f"selfplay.{key}" for key in ("num_examples", "num_negatives", "negatives", "temperature", "exclude_history")),
)
_MEASURED = ("data.", "model.", "training.", "seed", "decoding.", "evaluation.", "collaborative.")
_DEPENDS_ON: dict[str, tuple[str, ...]] = {
    "data": ("data.",),
    "collaborative": ("data.", "seed", "collaborative."),
    "evaluations/collaborative": ("data.", "seed", "collaborative.", "evaluation."),
    "sft": _POLICY,
    "evaluations/base": _MEASURED,
    "evaluations/sft": (*_MEASURED, "sft."),
    "iteration-0/sft": (*_POLICY, "selfplay.num_examples", "selfplay_sft."),
    "iteration-0/rollouts": _ROLLOUTS,
    "iteration-0/groups": (
        *_ROLLOUTS,
        "selfplay.random_ratio",
        "preference.oracle",
        "collaborative.",
        *("evaluation.grounding", "evaluation.sentence_model"),  # what says which titles are similar
    ),
}
"""Per stage the settings, or sections (with a dot), that it depends on; every other stage depends on all."""


def stage_key(config: RunConfig, stage: str) -> str:
    """A name for what a stage will hold: the same for two runs exactly when they fill it with the same bytes.

    It is a hash of the stage's place, the package's version, the settings that the stage depends on, names, sizes and
    times of change of the raw files and of a given model's files, and of an evaluation the metrics' names: one that
    lacks a metric leaves a gap in a comparison's table. Numbers depend on the machine and the installed
    packages too, which a folder of runs is taken to have in common.
    """
    kind = stage.replace("evaluations-valid/", "evaluations/")
    depends_on = _DEPENDS_ON.get(kind, ("",))
    defaults = flatten(config_to_dict(RunConfig()))  # those of the version, which is in the key
    settings = {
        key: value
        for key, value in flatten(config_to_dict(config)).items()
        if key not in WITHOUT_EFFECT and value != defaults[key]
        if any(key == name or _is_in(key, name) for name in depends_on)
    }
    if "decoding." in depends_on or "" in depends_on:
        settings["decoding.engine"] = resolve_engine(config.decoding)
    files = _files(config.data.path) + _files(config.data.test_path)
    if "model.name_or_path" in settings:
        files += _files(config.model.name_or_path)
    metrics = [*METRICS, *CANDIDATE_METRICS, *PAIR_METRICS] if kind.startswith("evaluations/") else []
    if metrics and config.data.task != "next_item":
        metrics.append(ROWS_FILE)  # so does one that lacks this file
    content = json.dumps([__version__, stage, sorted(settings.items()), files, *metrics])
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def _is_in(key: str, section: str) -> bool:
    return not section or (section.endswith(".") and key.startswith(section))


def _files(path: str | None) -> list[tuple[str, int, int]]:
    """Name, size (bytes) and time of change (ns) of a file, or of all files below a folder; none of a name on a hub."""
    root = Path(path or "").expanduser()
    if path is None or not root.exists():
        return []
    files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.is_file())
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


class SharedStages:
    """What a run takes from, and offers to, the other runs of its ``output_dir``; nothing without ``share_stages``.

    A stage that is filled is locked under its key, so that runs beside this one wait for it. The operating system
    releases the lock of a process that dies.

    A run takes the locks of its stages in the order of the loop and waits only while it holds no engines, so no two
    runs ever wait for each other, neither for stages nor for the CPUs and GPUs that engines hold. A run with engines
    computes a stage that another one is filling, to the same bytes.
    """

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._cache = folder.parent / "cache" / "stages"
        self._locks: dict[str, IO[str]] = {}

    def adopt(self, stage: Stage, *, may_wait: bool) -> bool:
        """Finish the stage with what another run made of it; False when it is to be filled here, locked if possible.

        With ``may_wait`` a run that is filling it is waited for.
        """
        name = self._name(stage)
        if not self._config.share_stages or name in self._locks:
            return False
        key = stage_key(self._config, name)
        shared = Stage(self._cache / key)
        if not shared.is_finished:
            file = self._cache / f".{key}.lock"
            lock = take_lock(file, wait=False)
            if lock is None and may_wait:
                logger.info("%s: waiting for the run that makes it", name)
                lock = take_lock(file, wait=True)
            if lock is None:
                return False
            if not Stage(shared.path).is_finished:  # looked at again: the other run may have finished it
                self._locks[name] = lock
                return False
            lock.close()
        _link(shared, stage.start())
        shutil.rmtree(stage.partial, ignore_errors=True)
        logger.info("%s: taken from %s", name, read_json(stage.path / ORIGIN)["run"])
        return True

    def publish(self, stage: Stage) -> None:
        """Offer a finished stage to the other runs, and release its lock."""
        if not self._config.share_stages:
            return
        name = self._name(stage)
        shared = self._cache / stage_key(self._config, name)
        if not shared.exists():
            self._cache.mkdir(parents=True, exist_ok=True)
            aside = Stage(self._cache / f".{shared.name}-{uuid.uuid4().hex[:8]}").start()
            write_json(aside.path / ORIGIN, {"run": self._folder.name, "folder": str(self._folder)})
            _link(stage, aside)
            try:
                aside.path.rename(shared)
            except OSError:  # another run was first
                shutil.rmtree(aside.path)
        if name in self._locks:
            self._locks.pop(name).close()

    def close(self) -> None:
        """Release what is locked: stages that were not finished."""
        while self._locks:
            self._locks.popitem()[1].close()

    def _name(self, stage: Stage) -> str:
        return stage.path.relative_to(self._folder).as_posix()


def origin(stage: Path) -> Path | None:
    """The folder of the run that a stage was taken from; None when it was filled in its own run."""
    file = stage / ORIGIN
    return Path(read_json(file)["folder"]) if file.is_file() else None


def _link(source: Stage, target: Stage) -> None:
    """Give the target the files of a finished stage, its marker last; copies where hard links cannot be made."""
    marker: dict[str, Any] = read_json(source.path / MARKER)
    for name in [*marker["files"], *([ORIGIN] if (source.path / ORIGIN).is_file() else [])]:
        file = target.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source.path / name, file)
        except OSError:
            shutil.copy2(source.path / name, file)
    write_json(target.path / MARKER, marker)
