"""Stage times read from a run, and the table that is made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from jobs import simulate_schedule
from sprec_ray.config.load import config_to_dict, load_config
from sprec_ray.config.run import ConfigError
from sprec_ray.schedule.stage_times import measure_run, read_measured
from sprec_ray.schedule.table import schedule_table
from sprec_ray.storage.artifacts import Stage, write_json

SETTINGS = [
    "decoding.placement=colocate",
    "decoding.chunk_size=10",
    "selfplay.num_iterations=3",
    "selfplay_sft.global_batch_size=16",
    "preference.global_batch_size=8",
]


def span(name: str, kind: str, start: float, duration: float) -> dict[str, object]:
    return {"name": name, "kind": kind, "start": start, "duration": duration}


def iteration(number: int, start: float) -> list[dict[str, object]]:
    """40 prompts in 20 s, 20 test rows in 10 s and 1 s of swap, 40 examples in 4 s of SFT and 39 groups in 13 s.

    With 1 + 2 s of loading that is 50 s; the next iteration starts 55 s after this one.
    """
    names = f"iteration {number}"
    previous = f"iteration-{number - 1}" if number else "sft"
    return [
        span(f"{previous}: test rows: swap", "load", start, 1),
        span(f"{previous}: test rows", "decode", start, 11),
        span(f"{previous}: grounding", "evaluate", start + 11, 0.5),
        span(f"{names}: negatives", "decode", start + 11.5, 20),
        span(f"{names}: sft", "load", start + 31.5, 1),
        span(f"{names}: sft", "compute", start + 32.5, 4),
        span(f"{names}: dpo", "load", start + 36.5, 2),
        span(f"{names}: dpo", "compute", start + 38.5, 13),
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    config = load_config(SETTINGS)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config_to_dict(config)))
    write_json(tmp_path / "data" / "counts.json", {"test": 20})
    rows = [span("decoders", "launch", -40, 30), span("training workers", "launch", -30, 20)]
    for number in range(3):
        stage = Stage(tmp_path / f"iteration-{number}" / "groups")
        stage.start()
        stage.finish({"counts": {"examples": 40, "groups": 39}})
        rows += iteration(number, 55 * number)
    (tmp_path / "timeline.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "results.json").write_text("{}")
    return tmp_path


def test_a_run_gives_its_stage_times(run: Path) -> None:
    """In turns: 1 + 10 + 0.5 + 20 + (1 + 4) + (2 + 13) = 51.5 s of 55."""
    measured = measure_run(run)
    times, work = measured.times, measured.work
    assert (work.num_examples, work.num_groups, work.num_test, work.chunk_size) == (40, 39, 20, 10)
    assert (times.decode_s, times.test_decode_s, times.swap_s) == (0.5, 0.5, 1)
    assert (times.sft_s, times.sft_load_s) == (0.1, 1)
    assert (times.preference_s, times.preference_load_s) == pytest.approx((13 / 39, 2))
    assert (times.launch_decoders_s, times.launch_workers_s, times.evaluate_s) == (30, 20, 0.5)
    assert measured.iteration_s == 55
    assert times.other_s == pytest.approx(55 - 51.5)


def test_stage_times_are_kept_and_read_again(run: Path) -> None:
    schedule_table([str(run), f"save={run / 'times.yaml'}"])
    again = read_measured(run / "times.yaml")
    assert (again.times, again.work) == (measure_run(run).times, measure_run(run).work)


def test_the_table_tells_every_placement_and_where_it_stops_scaling(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four devices: launches 50 s, swap 1, test rows 5, evaluation 0.5, negatives 5, SFT 1 + 1, other 3.5, preference
    2 + 10 / 3: 72.3 s. Two take 9.3 s more, eight 2.2 s less."""
    simulate_schedule.main([str(run), "gpus=4,512", f"out={run / 'spans.json'}"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "measured: 55.0 s per iteration"
    assert [line.split(" | ")[0].strip("| ") for line in lines[4:10]] == [
        placement for placement in ("split", "colocate", "sequential") for _ in range(2)
    ]
    assert "sequential: from 4 devices on, twice as many save less than 10 %; most goes to launch" in lines
    assert lines[-1] == "a global batch of 8 takes 8 workers at most; 4 chunks take 4 decoders"
    first = json.loads((run / "spans.json").read_text())[0]
    assert {"name", "lane", "start", "end", "width", "terms", "after"} == set(first["spans"][0])


def test_one_layout_with_changed_times(run: Path) -> None:
    """Twice the time to launch is twice 20 + 30 s more, on the layout of the run itself."""
    alone = ["workers=1", "decoders=1", "cores=1"]
    (before, after) = (
        [line for line in schedule_table([str(run), *alone, *more]).splitlines() if line.startswith("| sequential")]
        for more in ([], ["launch_workers_s=40", "launch_decoders_s=60"])
    )
    seconds = [float(row.split(" | ")[4]) for row in (*before, *after)]
    assert seconds == [105, 155]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage"),
        (["gpus=0"], "gpus=0 must be a whole number above 0"),
        (["sleep_s=1"], "sleep_s is no argument"),
        (["sft_s=fast"], "sft_s=fast must be a number of seconds"),
        (["plain"], "plain is no key=value"),
    ],
)
def test_arguments_that_name_nothing_are_one_line(arguments: list[str], message: str, run: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        schedule_table([str(run), *arguments] if arguments else [])


def test_stages_that_shared_processors_measure_nothing(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("placement: colocate", "placement: split"))
    with pytest.raises(ConfigError, match=r"measure with decoding\.placement=colocate"):
        measure_run(run)


def test_an_unfinished_run_measures_nothing(run: Path) -> None:
    (run / "results.json").unlink()
    with pytest.raises(ConfigError, match="must be a finished run of at least two iterations"):
        measure_run(run)


def test_a_file_with_another_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "times.yaml"
    file.write_text("times: {decode: 1}\nwork: {}\n")
    with pytest.raises(ConfigError, match="StageTimes has the keys decode_s"):
        read_measured(file)
