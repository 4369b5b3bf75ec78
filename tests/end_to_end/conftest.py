"""A run small enough to repeat: every engine real, every stage in its place, seconds of compute."""

from pathlib import Path

import pytest
from filelock import FileLock

from sprec_ray.cluster.runs.run import RunOutcome, train_selfplay
from sprec_ray.config.load import load_config
from sprec_ray.config.run import RunConfig
from sprec_ray.storage.artifacts import read_json
from tests.fixture_types import Make, Train

LONG_SFT = ("sft.num_epochs=30", "model.lora.dropout=0", "evaluation.base=false")
"""A first SFT that is long enough to be interrupted, whose masks do not depend on the number of workers."""

TINY = """
data: {source: demo, noun: book, template: short, num_train: 48, num_valid: 8, num_test: 16,
       demo: {num_items: 60, num_users: 60}}
model:
  max_prompt_tokens: 160
  max_response_tokens: 24
  scratch: {vocab_size: 400, hidden_size: 64, num_layers: 2, num_heads: 2, num_epochs: 40, learning_rate: 0.005,
            global_batch_size: 8, micro_batch_size: 8}
  lora: {rank: 4, alpha: 8}
training: {num_threads: 1}
sft: {num_epochs: 1, global_batch_size: 16, micro_batch_size: 8}
selfplay_sft: {num_epochs: 1, global_batch_size: 16, micro_batch_size: 8}
preference: {global_batch_size: 16, micro_batch_size: 8, learning_rate: 1.0e-4}
decoding: {engine: transformers}
selfplay: {num_iterations: 1, num_examples: 24}
"""


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def output_dir(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Shared by all runs of the session, so that the small Llama is pre-trained once: also by runs side by side."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "runs"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_file: Path, output_dir: Path) -> Make:
    def make(name: str, *overrides: str) -> RunConfig:
        return load_config([str(tiny_file), f"output_dir={output_dir}", f"name={name}", *overrides])

    return make


@pytest.fixture(scope="session")
def made(request: pytest.FixtureRequest, output_dir: Path) -> Train:
    """A finished run: made here, or taken from where tests that run side by side have made it, without a Ray."""

    def make(config: RunConfig) -> RunOutcome:
        with FileLock(output_dir / f".{config.name}.lock"):
            if (output_dir / config.name / "results.json").is_file():
                return train_selfplay(config)
            train: Train = request.getfixturevalue("train")
            return train(config)

    return make


@pytest.fixture(scope="session")
def undisturbed(made: Train, tiny: Make) -> RunOutcome:
    return made(tiny("undisturbed"))


@pytest.fixture(scope="session")
def long_sft(made: Train, tiny: Make) -> Path:
    """The folder of an undisturbed run with ``LONG_SFT``."""
    return made(tiny("long-sft", *LONG_SFT)).report.parent


@pytest.fixture(scope="session")
def small_llama(undisturbed: RunOutcome) -> Path:
    """The model folder of the undisturbed run: the cache beside it may hold those of other tests' catalogues too."""
    adapter = read_json(undisturbed.report.parent / "sft" / "adapter_config.json")
    return Path(adapter["base_model_name_or_path"])
