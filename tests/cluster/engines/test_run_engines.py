"""The canary, that finds out a decoder without its adapter, and the turns that decoders and trainers take."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sprec_ray.cluster.engines.catalog_index import CatalogIndex
from sprec_ray.cluster.engines.decoder_pool import DecodingError
from sprec_ray.cluster.engines.run_engines import Engines
from sprec_ray.cluster.engines.tasks import EmbedTask, ReadPolicy
from sprec_ray.config.methods import EvaluationConfig
from sprec_ray.config.run import DecodingConfig, LoraConfig, RunConfig
from sprec_ray.data.tokens import TextSettings
from sprec_ray.decoding.catalog.request import CatalogSearch
from sprec_ray.decoding.catalog.trie import build_trie
from sprec_ray.storage.timeline import Clock
from sprec_ray.types import AdapterCheckpoint, Example

POLICY = AdapterCheckpoint(path="somewhere/sft", version=1)
CANARY = {"prompt": [1, 2, 3], "response": [4, 5], "logp": -3.0}
EXAMPLE = Example(example_id="0", history=("Dune",), target="Emma")


TASK = EmbedTask(
    policy=ReadPolicy(model_path="model", dtype="float32", trust_remote_code=False, adapter=None, lora=LoraConfig()),
    texts=("Dune",),
)
INDEX = CatalogIndex(build_trie([[5, 1]], eos_token_id=1), ("Emma",))


class FakePool:
    """Decoders that give the canary the log-probabilities they are told to."""

    def __init__(self, *logps: float) -> None:
        self.logps = list(logps)
        self.loaded: AdapterCheckpoint | None = None

    def load_adapter(self, adapter: AdapterCheckpoint | None) -> None:
        self.loaded = adapter

    def canary(self, prompt: Sequence[int], response: Sequence[int]) -> list[float]:
        assert (prompt, response) == (CANARY["prompt"], CANARY["response"])
        return self.logps

    def start_decode(self, rows: Sequence[Any], **limits: Any) -> str:
        return f"{len(rows)} rows started"

    def start_search(self, rows: Sequence[Any], search: CatalogSearch, **_: Any) -> str:
        return f"{len(rows)} rows searched for {search.num_answers}"


def engines_with(pool: FakePool, folder: Path) -> Engines:
    engines = Engines(RunConfig(), folder, Clock(folder))
    engines.__dict__["session"] = SimpleNamespace()
    engines._pool = pool  # type: ignore[assignment]
    engines._encoder = SimpleNamespace(prompt=lambda history, **_: [1, 2])
    engines.remember_canary(POLICY, CANARY)
    return engines


def test_a_decoder_that_agrees_with_the_trainer_may_decode(tmp_path: Path) -> None:
    pool = FakePool(-3.0, -3.05)
    pending = engines_with(pool, tmp_path).decode(POLICY, [EXAMPLE], "model", search=2, label="")
    assert str(pending) == "1 rows started"
    assert pool.loaded == POLICY


def test_the_catalogue_is_searched_where_that_is_asked_for(tmp_path: Path) -> None:
    engines = engines_with(FakePool(-3.0), tmp_path)
    assert (
        str(engines.decode(POLICY, [EXAMPLE], "model", search=CatalogSearch(num_answers=3), label=""))
        == "1 rows searched for 3"
    )


@pytest.mark.parametrize("wrong", [-3.2, -2.5, float("nan")])
def test_one_decoder_that_disagrees_stops_the_run(wrong: float, tmp_path: Path) -> None:
    """Two response tokens and a tolerance of 0.05 nats each: 0.1 nats may differ, 0.2 may not."""
    engines = engines_with(FakePool(-3.0, wrong), tmp_path)
    with pytest.raises(DecodingError, match=r"where the trainer gave -3.000 .* somewhere/sft: it does not hold"):
        engines.decode(POLICY, [EXAMPLE], "model", search=2, label="")


def test_the_base_model_has_no_canary(tmp_path: Path) -> None:
    pool = FakePool(float("nan"))
    engines_with(pool, tmp_path).decode(None, [EXAMPLE], "model", search=1, label="")
    assert pool.loaded is None


class Turns:
    """Decoders and a training group that write down what happens to them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, placement: str) -> None:
        self.told: list[str] = []
        decoding = DecodingConfig(placement=placement, search="free")  # type: ignore[arg-type]
        config = RunConfig(decoding=decoding, evaluation=EvaluationConfig(grounding="policy"))
        self.engines = Engines(config, folder, Clock(folder))
        self.engines.remember_canary(POLICY, CANARY)
        monkeypatch.setattr("sprec_ray.cluster.engines.run_engines.TrainingSession", self.session)
        monkeypatch.setattr("sprec_ray.cluster.engines.run_engines.pack", lambda path, names=(): None)
        monkeypatch.setattr("sprec_ray.cluster.engines.run_engines.DecoderPool", self.pool)
        monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda path, **options: None)
        monkeypatch.setattr(TextSettings, "encoder", lambda *_: SimpleNamespace(prompt=lambda history, **_: [1, 2]))

    def tell(self, what: str, answer: Any = None) -> Callable[..., Any]:
        return lambda *_, **__: (self.told.append(what), answer)[1]

    def session(self, *_: Any, **__: Any) -> Any:
        self.told.append("workers launch")
        return SimpleNamespace(run=self.tell("compute", {}), close=self.tell("workers end"))

    def pool(self, *_: Any, **__: Any) -> Any:
        self.told.append("decoders launch")
        return SimpleNamespace(
            wait_ready=lambda: "fake",
            load_adapter=lambda adapter: None,
            canary=lambda prompt, response: [CANARY["logp"]],
            start_decode=self.tell("decode", SimpleNamespace(result=self.tell("decoded"))),
            sleep=self.tell("sleep"),
            wake=self.tell("wake"),
            close=self.tell("decoders end"),
        )

    def run(self) -> list[str]:
        """Two rounds of decoding and computing."""
        for _ in range(2):
            self.engines.decode(POLICY, [EXAMPLE], "model", search=1, label="")
            self.engines.read(TASK, "")
        self.engines.close()
        return self.told


def test_side_by_side_nobody_waits_for_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch, end = ["workers launch", "decoders launch"], ["decoders end", "workers end"]
    assert Turns(monkeypatch, tmp_path, "split").run() == [*launch, *["decode", "compute"] * 2, *end]


def test_on_shared_gpus_decoders_sleep_while_workers_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch, end = ["workers launch", "decoders launch"], ["decoders end", "workers end"]
    turn = ["wake", "decode", "decoded", "sleep", "compute"]
    assert Turns(monkeypatch, tmp_path, "colocate").run() == [*launch, *turn * 2, *end]


def test_one_after_the_other_each_ends_before_the_other_launches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding = ["decoders launch", "decode", "decoded", "decoders end"]
    computing = ["workers launch", "compute", "workers end"]
    assert Turns(monkeypatch, tmp_path, "sequential").run() == [*decoding, *computing] * 2


def test_a_decoder_reserves_the_gpus_of_its_tensor_parallel_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(
        "sprec_ray.cluster.engines.run_engines.DecoderPool", lambda *arguments, **_: told.extend(arguments)
    )
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda path, **options: None)
    monkeypatch.setattr("sprec_ray.cluster.engines.run_engines.catalog_index", lambda *_, **__: INDEX)
    monkeypatch.setattr("sprec_ray.cluster.engines.run_engines.pack", lambda path, names=(): None)
    config = DecodingConfig(engine="vllm", tensor_parallel_size=2, gpus_per_decoder=1)
    Engines(RunConfig(decoding=config), tmp_path, Clock(tmp_path), lambda: INDEX.titles)._start_decoders("model")
    assert (told[0].reserved_gpus, told[1].tensor_parallel_size) == (2, 2)
