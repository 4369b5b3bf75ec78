"""The job from the command line."""

import json
import subprocess
import sys


def start(*arguments):
    command = [sys.executable, "-m", "jobs.score_predictions", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_a_prediction_file_is_scored(tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/id2name.json").write_text(json.dumps({"0": "Dune", "1": "Emma"}))
    rows = [{"input": '"Emma"', "output": '"Dune"\n', "predict": ['"Dune"\n']}]
    (tmp_path / "predictions.json").write_text(json.dumps(rows))
    (tmp_path / "grounded.json").write_text(json.dumps([["Emma", "Dune"]]))
    done = start(
        f"predictions={tmp_path / 'predictions.json'}",
        f"catalog={tmp_path / 'eval'}",
        f"grounded={tmp_path / 'grounded.json'}",
        "k=1,2",
        f"out={tmp_path / 'metrics.json'}",
    )
    assert done.returncode == 0, done.stderr
    assert "HR@2" in done.stdout
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert (found["hr@1"], found["hr@2"]) == (0, 1)


def test_bad_arguments_are_one_line_and_exit_code_2():
    done = start("predictions=nowhere.json")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "catalog= is missing" in done.stderr
