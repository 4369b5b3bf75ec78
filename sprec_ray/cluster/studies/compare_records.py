"""What a comparison's runs left on disk, as the records of its page: results, stages that were shared, costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sprec_ray.cluster.runs.run import is_finished
from sprec_ray.cluster.stages.collaborative import RECOMMENDER
from sprec_ray.cluster.stages.sharing import origin
from sprec_ray.cluster.studies.sweep_records import is_span_of
from sprec_ray.config.compare import CompareConfig, Method, dataset_config, make_run, run_command
from sprec_ray.config.load import config_to_dict, flatten
from sprec_ray.config.run import RunConfig
from sprec_ray.config.sweep import Trial
from sprec_ray.reports.compare.results import Cost, Kind, MethodRecord, RunRecord, Status
from sprec_ray.storage.artifacts import MARKER, ArtifactError, Stage, as_eval_result, read_json
from sprec_ray.storage.timeline import Span, own_spans, read_timeline
from sprec_ray.types import EvalResult

PRETRAINING = "pre-training"
"""The span of the small Llama, which serves every run of an ``output_dir``."""
NOT_COMPARED = ("name", "output_dir", "share_stages", "seed")


def method_record(comparison: CompareConfig, method: Method) -> MethodRecord:
    """What a method is: how it differs from the dataset's file, and the published code's variant from the paper's."""
    config = make_run(comparison, method, comparison.seeds[0]).config
    dataset = flatten(config_to_dict(dataset_config(comparison)))
    reference = _reference_of(method)
    variants: dict[str, tuple[Any, Any]] = {}
    if reference is not None:
        paper = Method(label=method.label, name=method.name, variant="paper", files=reference[:1])
        published = Method(label=method.label, name=method.name, variant="reference", files=reference)
        both = [make_run(comparison, each, comparison.seeds[0]).config for each in (paper, published)]
        variants = _differences(*(flatten(config_to_dict(each)) for each in both))
    return MethodRecord(
        label=method.label,
        name=method.name,
        kind=_kind(config),
        variant=method.variant,
        about=_comment(Path(method.files[0])),
        settings=_differences(dataset, flatten(config_to_dict(config))),
        variant_settings=variants,
        study=method.study,
        value=method.value,
    )


def run_record(
    comparison: CompareConfig, method: Method, run: Trial, folder: Path, *, status: Status, error: str = ""
) -> RunRecord:
    """The record of a run whose folder is given. It is finished when its results are there, else ``status``."""
    done = run_is_done(run.config, folder, comparison.split)
    spent, alone, shared = run_costs(run.config, folder)
    return RunRecord(
        name=run.name,
        method=method.label,
        seed=run.config.seed,
        status="finished" if done else status,
        error="" if done else error,
        results=_results(run.config, folder, comparison.split) if done else (),
        spent=spent,
        alone=alone,
        shared=shared,
        command=run_command(comparison, method, run),
    )


def run_is_done(config: RunConfig, folder: Path, split: str) -> bool:
    """Whether nothing is left of a run; of a damaged one something is, and the run itself says what."""
    try:
        if split == "test":
            return is_finished(config, folder)
        labels = {result.label for result in _results(config, folder, split)}
    except ArtifactError:
        return False
    last = f"iteration-{config.selfplay.num_iterations - 1}"  # a run that had fewer iterations goes on
    return config.recommender != "language_model" or not config.selfplay.num_iterations or last in labels


def run_costs(config: RunConfig, folder: Path) -> tuple[Cost, Cost | None, dict[str, str]]:
    """What a run computed itself, what it would have alone, and the stages that other runs made, with their names.

    Launching engines, which runs keep for one another, and pre-training are in neither.
    """
    spent = _sum(_span_cost(config, span) for span in own_spans(folder))
    adopted = adopted_costs(config, folder)
    for marker in folder.rglob(MARKER):
        if marker.parent.relative_to(folder).as_posix() not in {stage for _, stage in adopted}:
            spent += _tokens(Stage(marker.parent))
    alone = None if None in adopted.values() else spent + _sum(cost for cost in adopted.values() if cost is not None)
    return spent, alone, {stage: maker.name for maker, stage in adopted}


def adopted_costs(config: RunConfig, folder: Path) -> dict[tuple[Path, str], Cost | None]:
    """What the stages cost that a run took from others, by maker and stage; None where the maker does not tell."""
    costs: dict[tuple[Path, str], Cost | None] = {}
    for marker in sorted(folder.rglob(MARKER)):
        name, maker = marker.parent.relative_to(folder).as_posix(), origin(marker.parent)
        if maker is None or maker == folder:
            continue
        span_of = config.collaborative.model if name == RECOMMENDER else name
        spans = [span for span in own_spans(maker) if span.name == span_of or is_span_of(name, span.name)]
        is_known = bool(spans) or name.endswith(("/groups", f"/{RECOMMENDER}"))  # what takes no time worth a span
        cost = _tokens(Stage(marker.parent)) + _sum(_span_cost(config, span) for span in spans)
        costs[maker, name] = cost if is_known else None
    return costs


def pretraining_cost(config: RunConfig, folder: Path) -> Cost:
    """What a run spent on the small Llama; nothing when another run had made it."""
    return _sum(_processors(config, span) for span in read_timeline(folder) if span.name == PRETRAINING)


def _sum(costs: Iterable[Cost]) -> Cost:
    return sum(costs, start=Cost())


def _span_cost(config: RunConfig, span: Span) -> Cost:
    return Cost() if span.kind == "launch" or span.name == PRETRAINING else _processors(config, span)


def _processors(config: RunConfig, span: Span) -> Cost:
    """A span's seconds times the processors that its side reserves: decoders, else workers.

    The data and the collaborative model are made in the driver: one CPU.
    """
    training, decoding = config.training, config.decoding
    cpus, gpus = training.num_workers * training.cpus_per_worker, training.num_workers * training.gpus_per_worker
    if span.name in ("data", config.collaborative.model):
        cpus, gpus = 1.0, 0.0
    elif span.kind == "decode":
        cpus, gpus = decoding.num_decoders * decoding.cpus_per_decoder, decoding.num_decoders * decoding.reserved_gpus
    return Cost(cpu_s=span.duration_s * cpus, gpu_s=span.duration_s * gpus)


def _tokens(stage: Stage) -> Cost:
    summary = stage.summary
    counts = (summary.get("result") or {}).get("counts", {})
    return Cost(
        trained_tokens=summary.get("num_trained_tokens", 0),
        decoded_tokens=summary.get("num_answer_tokens", 0) + counts.get("num_answer_tokens", 0),
    )


def _results(config: RunConfig, folder: Path, split: str) -> tuple[EvalResult, ...]:
    """The results of the policies that the configuration asks for: a run may once have had more iterations."""
    file = folder / ("results.json" if split == "test" else f"results-{split}.json")
    results = [as_eval_result(values) for values in read_json(file)["results"]]
    later = [f"iteration-{index}" for index in range(config.selfplay.num_iterations)]
    return tuple(result for result in results if not result.label.startswith("iteration-") or result.label in later)


def _kind(config: RunConfig) -> Kind:
    if config.recommender == "language_model":
        return "language model"
    return "collaborative" if config.collaborative.learns else "simple"


def _reference_of(method: Method) -> tuple[str, str] | None:
    """A method's file and the one of its published variant, if there is one."""
    file = Path(method.files[0])
    reference = file.parent / "reference" / file.name
    return (str(file), str(reference)) if reference.is_file() else None


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        key: (before.get(key), value)
        for key, value in now.items()
        if key not in NOT_COMPARED and before.get(key) != value
    }


def _comment(file: Path) -> str:
    """The comment at the head of a YAML file, as one line."""
    words = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words.append(line.lstrip("# ").strip())
    return " ".join(words)
