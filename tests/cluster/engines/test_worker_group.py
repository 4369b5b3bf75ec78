"""The training group: what it trains does not depend on its size, and its failures reach the driver."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from transformers.utils import logging as transformers_logging

from sprec_ray.cluster.engines import worker_group
from sprec_ray.cluster.engines.kept import KeptEngines
from sprec_ray.cluster.engines.tasks import EmbedTask, ReadPolicy, ScoreTask, TrainTask
from sprec_ray.cluster.engines.worker_group import TrainingError, TrainingSession
from sprec_ray.config.data import ScratchConfig
from sprec_ray.config.methods import PhaseConfig, PreferenceConfig
from sprec_ray.config.run import LoraConfig, TrainingConfig
from sprec_ray.data.prompts import render_response
from sprec_ray.data.tokens import TextSettings
from sprec_ray.models.scratch import write_untrained_model
from sprec_ray.storage.artifacts import write_rows
from sprec_ray.training.phase import Phase
from sprec_ray.types import JudgementGroup, PreferenceGroup

pytestmark = pytest.mark.slow

TITLES = ("Dune", "Emma", "Ulysses", 'A Child Called "It"', "The Waves")
TEXT = TextSettings(template="short", noun="book", max_prompt_tokens=120, max_response_tokens=24)
LORA = LoraConfig(rank=4, alpha=8, dropout=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers_logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("training")
    scratch = ScratchConfig(vocab_size=400, hidden_size=64, num_layers=2, num_heads=2)
    write_untrained_model(folder / "model", [render_response(title) for title in TITLES], scratch, max_positions=256)
    rng = np.random.default_rng(0)
    groups = []
    for number in range(11):  # no multiple of anything below
        drawn = [TITLES[index] for index in rng.permutation(len(TITLES))]
        history = tuple(drawn[: 1 + number % 3])
        groups.append(
            PreferenceGroup(
                example_id=str(number), history=history, chosen=drawn[3], rejected=tuple(drawn[4 : 5 - number % 2])
            )
        )
    write_rows(folder / "rows.jsonl", [g for g in groups if g.rejected])
    write_rows(folder / "sft.jsonl", groups)
    return folder


def train_all(
    session: TrainingSession, folder: Path, training: TrainingConfig, name: str
) -> tuple[dict[str, float], dict[str, float]]:
    """SFT, then preference training from it, embeddings and scores, in one session; first and last step metrics."""
    phase = Phase(
        model_path=str(folder / "model"),
        dtype="float32",
        out=str(folder / name / "sft"),
        seed=3,
        training=training,
        lora=LORA,
        optimization=PhaseConfig(num_epochs=2, global_batch_size=4, micro_batch_size=1, learning_rate=1e-2),
    )
    preference = Phase(
        model_path=str(folder / "model"),
        dtype="float32",
        out=str(folder / name / "preference"),
        seed=4,
        training=training,
        lora=LORA,
        init_adapter=str(folder / name / "sft"),
        reference_adapter=str(folder / name / "sft"),
        optimization=PreferenceConfig(num_epochs=2, global_batch_size=4, micro_batch_size=1, learning_rate=1e-3),
    )
    policy = ReadPolicy(
        model_path=str(folder / "model"),
        dtype="float32",
        trust_remote_code=False,
        adapter=str(folder / name / "preference"),
        lora=LORA,
    )
    embed = EmbedTask(policy=policy, texts=("Dune", "Emma", "An unknown title"))
    judgements = tuple(
        JudgementGroup(example_id=title, history=("Dune",), candidates=((title, "Emma"),), answers=((title, "Emma"),))
        for title in TITLES
    )
    session.run(TrainTask(phase=phase, rows_path=str(folder / "sft.jsonl"), text=TEXT), label="sft")
    summary = session.run(TrainTask(phase=preference, rows_path=str(folder / "rows.jsonl"), text=TEXT), label="dpo")
    np.save(folder / name / "embeddings.npy", session.run(embed, label="embed")["vectors"])
    scored = session.run(ScoreTask(policy=policy, groups=judgements, text=TEXT), label="score")["logps"]
    np.save(folder / name / "scores.npy", [sum(tokens) for (tokens,) in scored])
    return summary["steps"][0], summary["steps"][-1]


def test_two_workers_train_embed_and_score_as_one(kept: KeptEngines, folder: Path) -> None:
    """Losses are normalised over the global batch, so the share-out changes nothing but summation order."""
    alone = TrainingConfig(num_threads=1)
    session = kept.session(alone, lambda: TrainingSession(alone, storage=folder / "ray"))
    one = train_all(session, folder, alone, "one")
    both = TrainingConfig(num_threads=1, num_workers=2)
    session = TrainingSession(both, storage=folder / "ray")
    try:
        two = train_all(session, folder, both, "two")
    finally:
        session.close()
    for stage in ("sft", "preference"):
        ours, theirs = (load_file(folder / name / stage / "adapter_model.safetensors") for name in ("one", "two"))
        assert ours.keys() == theirs.keys()
        assert max(float((ours[key] - theirs[key]).abs().max()) for key in ours) < 1e-4
        assert max(float(ours[key].abs().max()) for key in ours if "lora_B" in key) > 1e-3
    for ours_metrics, theirs_metrics in zip(one, two, strict=True):
        assert ours_metrics == pytest.approx(theirs_metrics, abs=1e-4)
    for array, tolerance in {"embeddings": 1e-4, "scores": 1e-3}.items():  # scores are sums over tokens
        ours, theirs = (np.load(folder / name / f"{array}.npy") for name in ("one", "two"))
        np.testing.assert_allclose(ours, theirs, atol=tolerance, err_msg=array)


@pytest.mark.usefixtures("ray_session")
def test_a_failing_task_raises_the_workers_message_and_waiting_for_workers_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_group, "_WAIT_S", 1.0)  # a launch takes longer
    training = TrainingConfig(num_threads=1, max_failures=0)
    session = TrainingSession(training, storage=folder / "ray")
    phase = Phase(
        model_path=str(folder / "model"),
        dtype="float32",
        out=str(folder / "failing"),
        seed=0,
        training=training,
        lora=LORA,
        init_adapter=str(folder / "nowhere"),
        optimization=PhaseConfig(),
    )
    try:
        with pytest.raises(TrainingError, match=r"^sft: ValueError: .*nowhere.* does not exist"):
            session.run(TrainTask(phase=phase, rows_path=str(folder / "sft.jsonl"), text=TEXT), label="sft")
        assert "sft: no step in 1 s; free in the cluster: " in caplog.text
    finally:
        session.close()
