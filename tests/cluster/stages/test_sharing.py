"""Stages shared between runs: what their names depend on, how files are shared, and who waits for whom."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sprec_ray.cluster.stages import sharing
from sprec_ray.cluster.stages.sharing import SharedStages, origin, stage_key
from sprec_ray.config.load import config_to_dict, flatten, load_config
from sprec_ray.storage.artifacts import Stage

STAGES = (
    "data",
    "evaluations/base",
    "sft",
    "evaluations/sft",
    "iteration-0/sft",
    "iteration-0/rollouts",
    "iteration-0/groups",
    "iteration-0/preference",
    "evaluations/iteration-0",
    "iteration-1/sft",
)
CHANGES = {
    "name=other": (),
    "selfplay.num_iterations=9": (),
    "decoding.placement=colocate": (),
    "preference.beta=0.3": STAGES[7:],
    "preference.loss=softmax_dpo": STAGES[7:],
    "selfplay.random_ratio=0.5": STAGES[6:],
    "selfplay.exclude_history=true": STAGES[5:],
    "decoding.search=beam": ("evaluations/base", "evaluations/sft", *STAGES[5:]),
    "selfplay_sft.learning_rate=0.1": ("iteration-0/sft", *STAGES[7:]),
    "selfplay.num_examples=7": STAGES[4:],
    "sft.num_epochs=9": STAGES[2:],
    "evaluation.num_genres=3": ("evaluations/base", "evaluations/sft", *STAGES[7:]),
    "evaluation.grounding=sentence": ("evaluations/base", "evaluations/sft", *STAGES[6:]),
    "evaluation.sentence_model=other": ("evaluations/base", "evaluations/sft", *STAGES[6:]),
    "seed=3": STAGES[1:],
    "training.weight_decay=0.1": STAGES[1:],
    "data.num_train=9": STAGES,
}


def keys(*arguments: str) -> dict[str, str]:
    return {stage: stage_key(load_config(arguments), stage) for stage in STAGES}


@pytest.mark.parametrize("change", CHANGES)
def test_a_setting_renames_the_stages_that_depend_on_it(change: str) -> None:
    before, after = keys(), keys(change)
    assert tuple(stage for stage in STAGES if before[stage] != after[stage]) == CHANGES[change]


def test_no_setting_is_left_out_of_a_stage_that_has_no_list_of_its_own() -> None:
    """A new setting changes the later stages unless it is known to be without effect; the earlier ones by section."""
    names = set(flatten(config_to_dict(load_config([]))))
    assert set(sharing.WITHOUT_EFFECT) <= names
    for depends_on in sharing._DEPENDS_ON.values():
        for name in depends_on:
            assert name in names or any(key.startswith(name) for key in names if name.endswith("."))


def test_stages_are_not_taken_for_each_other() -> None:
    assert len(set(keys().values())) == len(STAGES)
    config = load_config([])
    assert stage_key(config, "evaluations/sft") != stage_key(config, "evaluations-valid/sft")
    few = load_config(["evaluation.k=[1]"])
    assert stage_key(config, "evaluations-valid/base") != stage_key(few, "evaluations-valid/base")


def test_a_new_metric_renames_the_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version stays the same while a version is made."""
    before = keys()
    monkeypatch.setattr(sharing, "METRICS", {**sharing.METRICS, "novelty": None})
    after = keys()
    assert [stage for stage in STAGES if before[stage] != after[stage]] == [
        stage for stage in STAGES if stage.startswith("evaluations")
    ]


def test_changed_raw_files_rename_everything(tmp_path: Path) -> None:
    (tmp_path / "u.data").write_text("1")
    arguments = ("data.source=movielens", f"data.path={tmp_path}")
    before = keys(*arguments)
    assert keys(*arguments) == before
    (tmp_path / "u.data").write_text("12")
    assert not set(keys(*arguments).values()) & set(before.values())


def run(tmp_path: Path, name: str, *arguments: str) -> tuple[SharedStages, Stage]:
    folder = tmp_path / name
    shared = SharedStages(load_config([f"name={name}", "share_stages=true", *arguments]), folder)
    return shared, Stage(folder / "sft")


def fill(stage: Stage) -> None:
    stage.start()
    (stage.path / "sub").mkdir()
    (stage.path / "sub" / "weights").write_text("weights")
    stage.finish({"canary": 1})


def test_a_stage_is_filled_once_and_taken_by_the_next_run(tmp_path: Path) -> None:
    first, stage = run(tmp_path, "first")
    assert not first.adopt(stage, may_wait=True)
    fill(stage)
    first.publish(stage)
    second, taken = run(tmp_path, "second", "preference.beta=0.3")
    assert second.adopt(taken, may_wait=True)
    assert taken.is_finished
    assert taken.summary == stage.summary
    assert (taken.path / "sub" / "weights").stat().st_ino == (stage.path / "sub" / "weights").stat().st_ino
    assert (origin(stage.path), origin(taken.path)) == (None, tmp_path / "first")
    third, other = run(tmp_path, "third", "sft.num_epochs=9")
    assert not third.adopt(other, may_wait=True)


def test_what_an_interrupted_stage_left_is_replaced(tmp_path: Path) -> None:
    first, stage = run(tmp_path, "first")
    assert not first.adopt(stage, may_wait=True)
    fill(stage)
    first.publish(stage)
    second, taken = run(tmp_path, "second")
    taken.partial.mkdir(parents=True)
    (taken.path / "half").write_text("half")
    assert second.adopt(taken, may_wait=True)
    assert sorted(path.name for path in taken.path.iterdir()) == ["_SUCCESS.json", "shared.json", "sub"]


def test_files_are_copied_where_links_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("cross-device link")

    monkeypatch.setattr("os.link", refuse)
    first, stage = run(tmp_path, "first")
    assert not first.adopt(stage, may_wait=True)
    fill(stage)
    first.publish(stage)
    second, taken = run(tmp_path, "second")
    assert second.adopt(taken, may_wait=True)
    assert (taken.path / "sub" / "weights").read_text() == "weights"
    assert taken.is_finished


def test_a_run_waits_for_the_one_that_fills_the_stage_but_not_while_it_holds_engines(tmp_path: Path) -> None:
    first, stage = run(tmp_path, "first")
    assert not first.adopt(stage, may_wait=True)
    busy, its_own = run(tmp_path, "busy")
    assert not busy.adopt(its_own, may_wait=False)
    second, taken = run(tmp_path, "second")
    adopted: list[bool] = []
    waiting = threading.Thread(target=lambda: adopted.append(second.adopt(taken, may_wait=True)))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    fill(stage)
    first.publish(stage)
    waiting.join(10)
    assert adopted == [True]
    fill(its_own)
    busy.publish(its_own)  # made twice, kept once
    assert len([path for path in (tmp_path / "cache" / "stages").iterdir() if path.is_dir()]) == 1


def test_the_lock_of_a_run_that_fails_or_dies_is_free_again(tmp_path: Path) -> None:
    first, stage = run(tmp_path, "first")
    assert not first.adopt(stage, may_wait=True)
    first.close()
    program = (
        "import sys; from pathlib import Path\n"
        "from sprec_ray.storage.artifacts import Stage\n"
        "from sprec_ray.cluster.stages.sharing import SharedStages\n"
        "from sprec_ray.config.load import load_config\n"
        f"folder = Path({str(tmp_path)!r}) / 'dies'\n"
        "shared = SharedStages(load_config(['name=dies', 'share_stages=true']), folder)\n"
        "assert not shared.adopt(Stage(folder / 'sft'), may_wait=False)\n"
        "import os; os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    second, taken = run(tmp_path, "second")
    assert not second.adopt(taken, may_wait=False)
    assert second._locks


def test_nothing_is_shared_unless_asked_for(tmp_path: Path) -> None:
    alone = SharedStages(load_config([]), tmp_path / "alone")
    stage = Stage(tmp_path / "alone" / "sft")
    assert not alone.adopt(stage, may_wait=True)
    fill(stage)
    alone.publish(stage)
    assert not (tmp_path / "cache").exists()
