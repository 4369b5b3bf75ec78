"""Every mistake of a user is one sentence with a remedy, before Ray or any engine starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from sprec_ray.cluster.runs import run
from sprec_ray.cluster.runs.run import train_selfplay
from sprec_ray.config.load import load_config
from sprec_ray.config.run import ConfigError
from sprec_ray.storage.artifacts import ArtifactError


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(config: object) -> bool:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(run, "_connect", connect)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("preference.betta=0.1", r"preference.betta: unknown key; did you mean preference.beta\?"),
        ("preference.beta=-0.1", r"preference.beta=-0.1: .*greater than 0"),
        ("selfplay.num_negatives=3", r"selfplay.num_negatives=3 needs preference.loss=softmax_dpo"),
        ("data.source=sprec", r"data.source=sprec needs data.path=FOLDER"),
        ("training.num_workers=3", r"global_batch_size=64 must be a multiple of training.num_workers=3"),
        ("nowhere.yaml", r"nowhere.yaml: no such configuration file"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config([override])
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.source=movielens", "data.path=nowhere"], r"data.path=nowhere does not exist; give the folder"),
        (["model.name_or_path=./nowhere"], r"model.name_or_path=./nowhere does not exist; give a model folder"),
        (["model.name_or_path=/no/such/model"], r"model.name_or_path=/no/such/model does not exist"),
    ],
)
def test_a_missing_path_is_named_before_ray_starts(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        train_selfplay(load_config([f"output_dir={tmp_path}", *overrides]))


@pytest.mark.usefixtures("no_ray")
def test_limits_beyond_the_models_context_are_named_before_ray_starts(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"max_position_embeddings": 256}')
    arguments = [f"output_dir={tmp_path}", f"model.name_or_path={tmp_path / 'model'}", "model.max_response_tokens=48"]
    with pytest.raises(ConfigError, match=r"max_prompt_tokens=209 and model.max_response_tokens=48 exceed the context"):
        train_selfplay(load_config([*arguments, "model.max_prompt_tokens=209"]))
    with pytest.raises(AssertionError, match="Ray was started"):
        train_selfplay(load_config([*arguments, "model.max_prompt_tokens=208"]))


@pytest.mark.usefixtures("no_ray")
def test_grounding_that_is_not_installed_is_named_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs sentence-transformers: pip install"):
        train_selfplay(load_config([f"output_dir={tmp_path}", "evaluation.grounding=sentence"]))


@pytest.mark.usefixtures("no_ray")
def test_a_second_process_in_the_same_run_is_refused(tmp_path: Path) -> None:
    config = load_config([f"output_dir={tmp_path}"])
    with run.open_run(config), pytest.raises(ArtifactError, match=r"another process is running .*demo; wait for it"):
        train_selfplay(config)


@pytest.mark.usefixtures("no_ray")
def test_refused_settings_do_not_take_the_name(tmp_path: Path) -> None:
    with run.open_run(load_config([f"output_dir={tmp_path}", "preference.beta=7"])):
        pass
    with run.open_run(load_config([f"output_dir={tmp_path}"])) as folder:
        assert folder == tmp_path / "demo"


@pytest.mark.usefixtures("no_ray")
@pytest.mark.slow
def test_an_output_dir_that_cannot_be_made_is_one_line() -> None:
    command = [sys.executable, "-m", "jobs.train_selfplay", "configs/demo.yaml", "output_dir=/proc/x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("no_ray")
def test_a_model_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config.json"):
        train_selfplay(load_config([f"output_dir={tmp_path / 'runs'}", f"model.name_or_path={tmp_path}"]))


@pytest.mark.usefixtures("no_ray")
def test_a_folder_that_is_no_run_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds files but no config.yaml; choose another name="):
        train_selfplay(load_config([f"output_dir={tmp_path}"]))


def sprec_folder(folder: Path, *, rows: str, catalog: str = '{"0": "Dune", "1": "Emma", "2": "Ulysses"}') -> Path:
    folder.mkdir()
    for name in ("train", "valid", "test"):
        (folder / f"{name}.json").write_text(rows)
    (folder / "id2name.json").write_text(catalog)
    return folder


ROW = '[{"instruction": "", "input": "Read: \\"Dune\\", \\"Emma\\", \\"Ulysses\\", more", "output": "\\"Emma\\""}]'
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 12345\n"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("rows", "catalog", "overrides", "message"),
    [
        (LFS, '{"0": "Emma"}', [], r"train.json.* Git-?LFS .*git lfs pull"),
        ("[]", '{"0": "Emma"}', [], r"train.json"),
        (ROW, '{"0": "Other", "1": "Another"}', [], r"the catalogue holds none of the targets"),
        (
            ROW,
            '{"0": "Dune", "1": "Emma", "2": "Ulysses"}',
            ["selfplay.num_negatives=9", "preference.loss=softmax_dpo"],
            r"selfplay.num_negatives=9 exceeds the 2 titles the catalogue holds besides the target; lower it",
        ),
    ],
)
def test_unusable_data_is_named_before_an_engine_starts(
    rows: str, catalog: str, overrides: list[str], message: str, tmp_path: Path
) -> None:
    folder = sprec_folder(tmp_path / "raw", rows=rows, catalog=catalog)
    arguments = ["data.source=sprec", f"data.path={folder}", f"output_dir={tmp_path / 'runs'}", *overrides]
    with pytest.raises(ValueError, match=message) as caught:
        train_selfplay(load_config(arguments))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs" / "demo" / "ray-train").exists()


def test_a_job_prints_one_line_and_exits_with_2() -> None:
    command = [sys.executable, "-m", "jobs.train_selfplay", "configs/demo.yaml", "preference.beta=-1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip().split("\n")[-1].startswith("error: preference.beta=-1")
    assert "Traceback" not in done.stderr
