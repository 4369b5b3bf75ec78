"""The main job from raw interactions to a report, on the engines it has on a GPU box, and what a crash leaves of it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from jobs.score_predictions import main as score_main
from sprec_ray.cluster.engines.kept import KeptEngines
from sprec_ray.cluster.runs.run import RunOutcome, evaluate_on_valid, train_selfplay
from sprec_ray.config.run import ConfigError
from sprec_ray.metrics.compute import METRICS
from sprec_ray.storage.artifacts import MARKER, ArtifactError, read_json, read_rows
from sprec_ray.types import PreferenceGroup
from tests.fixture_types import Make, Train

pytestmark = pytest.mark.slow

STAGES = ("sft", "iteration-0/rollouts", "iteration-0/sft", "iteration-0/groups", "iteration-0/preference")


def folder_of(outcome: RunOutcome) -> Path:
    return outcome.report.parent


def weights_of(folder: Path, stage: str = "iteration-0/preference") -> bytes:
    return (folder / stage / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="session")
def on_vllm(ray_session: None, tiny: Make) -> RunOutcome:
    return train_selfplay(tiny("vllm", "decoding.engine=vllm"))


def test_a_run_measures_base_sft_and_every_iteration_beside_its_baselines(on_vllm: RunOutcome) -> None:
    labels = ["base", "sft", "iteration-0", "popularity", "last_item", "random"]
    assert [result.label for result in on_vllm.results] == labels
    for result in on_vllm.results:
        assert all(np.isfinite(value) for value in result.metrics.values()), result
        assert {"hr@5", "ndcg@5", "div_ratio@1", "or_ratio@5", "mgu@1", "dgu@5"} <= result.metrics.keys()


def test_the_report_names_the_engines_that_ran(on_vllm: RunOutcome) -> None:
    results = read_json(folder_of(on_vllm) / "results.json")
    assert results["engines"]["decoding"].startswith("vllm")
    assert results["engines"]["training"].startswith("DeepSpeed")
    page = on_vllm.report.read_text()
    assert results["engines"]["decoding"] in page
    assert "<script src" not in page


def test_both_engines_give_the_same_rollouts_and_adapters(on_vllm: RunOutcome, undisturbed: RunOutcome) -> None:
    """The first SFT does not depend on the decoder; the beams are the same titles, so the groups are too."""
    assert weights_of(folder_of(on_vllm), "sft") == weights_of(folder_of(undisturbed), "sft")
    groups = [
        read_rows(folder_of(outcome) / "iteration-0" / "groups" / "groups.jsonl", PreferenceGroup)
        for outcome in (on_vllm, undisturbed)
    ]
    assert groups[0] == groups[1]
    assert weights_of(folder_of(on_vllm)) == weights_of(folder_of(undisturbed))


def test_a_longer_first_sft_fits_the_targets_better(undisturbed: RunOutcome, long_sft: Path) -> None:
    losses = [read_json(run / "sft" / "steps.json")[-1]["loss"] for run in (folder_of(undisturbed), long_sft)]
    assert losses[1] < losses[0]


def test_no_group_rejects_its_target(undisturbed: RunOutcome) -> None:
    groups = read_rows(folder_of(undisturbed) / "iteration-0" / "groups" / "groups.jsonl", PreferenceGroup)
    assert groups
    assert all(group.chosen not in group.rejected for group in groups)


def test_the_final_adapter_loads_in_peft_and_gives_the_trainers_log_probability(
    undisturbed: RunOutcome, small_llama: Path
) -> None:
    stage = folder_of(undisturbed) / "iteration-0" / "preference"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(small_llama), stage)
    canary = read_json(stage / MARKER)["summary"]["canary"]
    ids = torch.tensor([canary["prompt"] + canary["response"]])
    with torch.no_grad():
        logps = model(ids).logits[0, :-1].log_softmax(-1)
    picked = logps.gather(1, ids[0, 1:, None])[len(canary["prompt"]) - 1 :, 0]
    assert float(picked.sum()) == pytest.approx(canary["logp"], abs=1e-3)


def test_the_predictions_of_a_run_score_the_same_through_the_scoring_job(
    undisturbed: RunOutcome, tmp_path: Path
) -> None:
    evaluations = folder_of(undisturbed) / "evaluations"
    folder, out = evaluations / "iteration-0", tmp_path / "metrics.json"
    score_main(
        [
            f"predictions={folder / 'predictions.json'}",
            f"catalog={evaluations / 'catalog'}",
            f"grounded={folder / 'grounded.json'}",
            f"out={out}",
        ]
    )
    scored, measured = read_json(out), read_json(folder / MARKER)["summary"]["result"]["metrics"]
    for name in METRICS:
        for k in (1, 5):
            if (name, k) != ("ild", 1):
                assert scored[f"{name}@{k}"] == pytest.approx(measured[f"{name}@{k}"]), name


def test_a_finished_run_is_measured_on_its_validation_rows(
    undisturbed: RunOutcome, kept: KeptEngines, tiny: Make
) -> None:
    results = evaluate_on_valid(tiny("undisturbed"), kept=kept)
    assert [result.label for result in results] == [result.label for result in undisturbed.results]
    assert all(result.counts["num_rows"] == 8 for result in results)
    with pytest.raises(ConfigError, match=r"never-run does not exist; run jobs.train_selfplay"):
        evaluate_on_valid(tiny("never-run"))


def test_running_a_finished_run_again_does_nothing(undisturbed: RunOutcome, train: Train, tiny: Make) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder_of(undisturbed).rglob("*") if path.name != "config.yaml"}
    again = train(tiny("undisturbed"))
    after = {path: path.stat().st_mtime_ns for path in folder_of(undisturbed).rglob("*") if path.name != "config.yaml"}
    assert again.was_finished
    assert again.results == undisturbed.results
    assert after == before


def test_a_run_killed_before_its_report_writes_it_again(undisturbed: RunOutcome, train: Train, tiny: Make) -> None:
    """A finished run is one whose report is there and whose results cover every iteration asked for."""
    folder = folder_of(undisturbed).parent / "no-report"
    shutil.copytree(folder_of(undisturbed), folder)
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("undisturbed", "no-report"))
    (folder / "report.html").unlink()
    again = train(tiny("no-report"))
    assert not again.was_finished
    assert again.report.is_file()
    assert again.results == undisturbed.results


@pytest.mark.parametrize("killed_in", STAGES)
def test_a_run_killed_in_a_stage_ends_with_the_same_adapter_bit_for_bit(
    killed_in: str, undisturbed: RunOutcome, train: Train, tiny: Make
) -> None:
    """What a kill leaves: finished stages before, and of the killed stage some files without the marker."""
    name = f"killed-in-{killed_in.replace('/', '-')}"
    folder = folder_of(undisturbed).parent / name
    shutil.copytree(folder_of(undisturbed), folder)
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("undisturbed", name))
    for file in ("results.json", "metrics.jsonl", "report.html"):
        (folder / file).unlink()
    for stage in STAGES[STAGES.index(killed_in) + 1 :]:
        shutil.rmtree(folder / stage)
    shutil.rmtree(folder / "evaluations" / "iteration-0")
    (folder / killed_in / MARKER).unlink()
    torn = max((folder / killed_in).iterdir(), key=lambda file: file.stat().st_size)
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    resumed = train(tiny(name))
    assert weights_of(folder) == weights_of(folder_of(undisturbed))
    assert resumed.results == undisturbed.results


def test_a_truncated_file_of_a_finished_stage_is_named_before_anything_starts(
    undisturbed: RunOutcome, tiny: Make
) -> None:
    folder = folder_of(undisturbed).parent / "truncated"
    shutil.copytree(folder_of(undisturbed), folder)
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("undisturbed", "truncated"))
    weights = folder / "sft" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"sft/adapter_model.safetensors is missing or truncated .* delete"):
        train_selfplay(tiny("truncated"))


def test_a_run_is_not_continued_with_other_settings(undisturbed: RunOutcome, tiny: Make) -> None:
    with pytest.raises(ConfigError, match=r"was made with preference.beta=0.1, not 0.5; choose another name="):
        train_selfplay(tiny("undisturbed", "preference.beta=0.5"))


def test_more_iterations_continue_a_finished_run(undisturbed: RunOutcome, train: Train, tiny: Make) -> None:
    folder = folder_of(undisturbed).parent / "longer"
    shutil.copytree(folder_of(undisturbed), folder)
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("undisturbed", "longer"))
    longer = train(tiny("longer", "selfplay.num_iterations=2"))
    assert [result.label for result in longer.results][:4] == ["base", "sft", "iteration-0", "iteration-1"]
    assert longer.results[:3] == undisturbed.results[:3]


def test_random_negatives_against_the_base_model_without_sft(train: Train, tiny: Make) -> None:
    """Ablations RN and noSFT with S-DPO's loss: no decoding of negatives, N distinct titles, the base as reference."""
    outcome = train(
        tiny(
            "ablation",
            "selfplay.negatives=random",
            "selfplay.sft=false",
            "selfplay.num_negatives=3",
            "preference.loss=softmax_dpo",
            "preference.reference=base",
        )
    )
    folder = folder_of(outcome)
    assert not (folder / "iteration-0" / "rollouts").exists()
    assert not (folder / "iteration-0" / "sft").exists()
    groups = read_rows(folder / "iteration-0" / "groups" / "groups.jsonl", PreferenceGroup)
    assert all(len({*group.rejected, group.chosen}) == 4 for group in groups)


def test_without_preference_training_an_iteration_is_sft(train: Train, tiny: Make) -> None:
    outcome = train(tiny("no-dpo", "selfplay.preference=false"))
    assert (folder_of(outcome) / "iteration-0" / "sft" / MARKER).exists()
    assert not (folder_of(outcome) / "iteration-0" / "preference").exists()
