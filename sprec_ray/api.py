"""What a notebook needs and no command line gives: a run read back, and its catalogue searched with an adapter."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sprec_ray.cluster.engines.catalog_index import catalog_index
from sprec_ray.cluster.engines.search_settings import decoder_model
from sprec_ray.cluster.stages.language_model import given_model
from sprec_ray.config.load import make_config, read_yaml
from sprec_ray.config.run import ConfigError, RunConfig
from sprec_ray.data.catalog import Catalog
from sprec_ray.data.tokens import TextSettings
from sprec_ray.decoding.catalog.request import CatalogSearch
from sprec_ray.storage.artifacts import MARKER, as_eval_result, read_json
from sprec_ray.types import AdapterCheckpoint, EvalResult

_ADAPTER_FILE = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class CatalogAnswer:
    """A title of a catalogue as the next item of a history."""

    title: str
    logp: float
    """Sum of the title's token log-probabilities, end of sequence included; nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResults:
    """A run's folder, read."""

    folder: Path
    config: RunConfig
    results: tuple[EvalResult, ...]
    """Of every policy in the order of training, baselines last; empty until the run is finished."""
    adapters: Mapping[str, Path]
    """By policy (``sft``, ``iteration-0`` ...) the folder of its adapter, as PEFT loads it."""
    model: str
    """The folder or hub name of the language model that the adapters belong to; empty where there is none yet."""
    titles: tuple[str, ...]
    """The catalogue."""

    def metric(self, name: str) -> dict[str, float]:
        """One metric (``ndcg@5``) by policy."""
        return {result.label: result.metrics[name] for result in self.results if name in result.metrics}

    def search(
        self, histories: Sequence[Sequence[str]], *, policy: str = "base", k: int = 10
    ) -> list[tuple[CatalogAnswer, ...]]:
        """The k most probable titles after every history, under one of the run's policies or ``base``.

        Raises ValueError for a policy that the run does not have, or has not yet.
        """
        if not self.model or policy not in {"base", *self.adapters}:
            known = ", ".join(["base", *self.adapters]) if self.model else "none, or none yet"
            raise ValueError(f"{self.folder} has no policy {policy!r}; it has: {known}")
        if not Path(self.model).is_dir() and self.config.model.name_or_path == "scratch":
            raise ValueError(
                f"the small Llama of {self.folder} is not at {self.model} any more; run jobs.train_selfplay with "
                "another name= to make it again, or call search_catalog with model="
            )
        adapter = self.adapters.get(policy)
        return search_catalog(histories, self.titles, config=self.config, model=self.model, adapter=adapter, k=k)


def read_run(folder: str | Path) -> RunResults:
    """The configuration, results, adapters and catalogue of a run, finished or not, from its folder on this machine.

    Raises ValueError for a folder that holds no run.
    """
    folder = Path(folder).expanduser().resolve()
    if not (folder / "config.yaml").is_file() or not (folder / "data" / MARKER).is_file():
        raise ValueError(f"{folder} holds no run with data; name the folder that a run printed, for example runs/demo")
    config = make_config(read_yaml(folder / "config.yaml"))
    results = folder / "results.json"
    stages = {"sft": folder / "sft"}
    for iteration in range(config.selfplay.num_iterations):
        trained = [name for name in ("sft", "preference") if getattr(config.selfplay, name)]
        if trained:
            stages[f"iteration-{iteration}"] = folder / f"iteration-{iteration}" / trained[-1]
    adapters = {label: stage for label, stage in stages.items() if (stage / MARKER).is_file()}
    model = "" if config.recommender == "collaborative" else _model_of(config, folder, adapters.get("sft"))
    return RunResults(
        folder=folder,
        config=config,
        results=tuple(map(as_eval_result, read_json(results)["results"])) if results.is_file() else (),
        adapters=adapters,
        model=model,
        titles=Catalog.read(folder / "data" / "catalog.json").titles,
    )


def _model_of(config: RunConfig, folder: Path, sft: Path | None) -> str:
    """The given language model, or the small Llama that A_0 was trained on: where it was, or in the run's cache."""
    given = given_model(config)
    if given is not None or sft is None:
        return given or ""
    recorded = Path(read_json(sft / _ADAPTER_FILE)["base_model_name_or_path"])
    cached = folder.parent / "cache" / recorded.name
    return str(recorded if recorded.is_dir() or not cached.is_dir() else cached)


def search_catalog(
    histories: Sequence[Sequence[str]],
    titles: Sequence[str],
    *,
    config: RunConfig,
    model: str | None = None,
    adapter: str | Path | None = None,
    k: int = 10,
) -> list[tuple[CatalogAnswer, ...]]:
    """The k most probable of the titles after every history of titles (oldest first), best first.

    ``config`` says how histories become prompts, and the precision; ``model`` is ``config.model.name_or_path`` where it
    is not given, ``adapter`` a PEFT folder. A history's last ``data.max_history`` titles count, as in training. The
    search is exact within ``decoding.max_search_tokens``, in this process, on its GPU where it has one. Titles of a
    history are not left out.

    Raises ValueError for an empty history, where k exceeds the catalogue, and for configurations whose prompts name the
    titles to choose from (``data.task`` other than next_item).
    """
    import torch
    from transformers import AutoTokenizer

    from sprec_ray.decoding.engines.transformers import TransformersDecoder

    path = model or config.model.name_or_path
    if path == "scratch":
        raise ConfigError("model.name_or_path=scratch is no model on disk; pass model=, or read_run(folder).search()")
    if config.data.task != "next_item":
        raise ValueError(f"data.task={config.data.task} asks about titles that the prompt names; search next_item runs")
    if isinstance(histories, str) or any(isinstance(history, str) for history in histories):
        raise ValueError("histories is a list of lists of titles, oldest first; put each history into a list")
    if not 1 <= k <= len(titles):
        raise ValueError(f"k={k} must be between 1 and the {len(titles)} titles of the catalogue")
    if any(not history for history in histories):
        raise ValueError("a history has no titles; every history needs at least one")
    text = TextSettings(
        template=config.data.template,
        noun=config.data.noun,
        max_prompt_tokens=config.model.max_prompt_tokens,
        max_response_tokens=config.model.max_response_tokens,
    )
    encoder = text.encoder(AutoTokenizer.from_pretrained(path, trust_remote_code=config.model.trust_remote_code))
    limits = dataclasses.replace(decoder_model(config, path, max_beam_width=1), tensor_parallel_size=1)
    with tempfile.TemporaryDirectory(prefix="sprec-ray-") as folder:
        index = catalog_index(encoder, titles, folder=Path(folder), max_tokens=limits.max_model_len // 2)
    room = index.room(config.model.max_prompt_tokens, limits.max_model_len)
    prompts = [encoder.prompt(tuple(history)[-config.data.max_history :], room=room) for history in histories]
    decoder = TransformersDecoder(limits, use_gpu=torch.cuda.is_available())
    try:
        decoder.load_adapter(None if adapter is None else AdapterCheckpoint(path=str(adapter), version=0))
        search = CatalogSearch(num_answers=k, max_tokens=config.decoding.max_search_tokens)
        found = decoder.catalog.search(index.trie, prompts, search)
    finally:
        decoder.close()
    answers = []
    for one in found:
        named = [
            CatalogAnswer(index.titles[item], logp)
            for leaf, logp in zip(one.leaves.tolist(), one.logps.tolist(), strict=True)
            for item in index.trie.items_below(leaf)
        ]
        answers.append(tuple(named[:k]))
    return answers
