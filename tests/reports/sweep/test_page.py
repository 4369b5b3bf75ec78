"""The page of a sweep: well-formed, self-contained, escaped, and drawn for every shape of search and of trial."""

import csv
import dataclasses
import math
import re
from xml.etree import ElementTree

import pytest

from sprec_ray.reports.svg.labels import place_labels
from sprec_ray.reports.sweep.names import short_names, trial_labels
from sprec_ray.reports.sweep.page import render_sweep, write_sweep_report
from sprec_ray.reports.sweep.plots import pareto_plot
from sprec_ray.reports.sweep.results import SweepData, SweepParameter, TrialRecord, read_sweep
from sprec_ray.reports.sweep.rows import sweep_rows
from sprec_ray.reports.tables import all_columns, column_of
from sprec_ray.types import EvalResult

HOSTILE = '<script>alert("it\'s")</script> & \x0b\x00'
BETA = SweepParameter(name="preference.beta", values=(0.05, 0.1))
NEGATIVES = SweepParameter(name="selfplay.num_negatives", values=(1, 2))
LOSS = SweepParameter(name="preference.loss", values=("dpo", HOSTILE))
RANGE = SweepParameter(name="preference.beta", low=0.01, high=1.0, log=True)
RATE = SweepParameter(name="preference.learning_rate", low=1e-5, high=1e-4)


def result(label, value, **metrics):
    values = {"ndcg@5": value, "hr@5": value, "hr_se@5": 0.01, "div_ratio@5": 1 - value, "or_ratio@5": value}
    return EvalResult(label=label, metrics=values | metrics, counts={"num_rows": 100})


def trial(number, settings, *, value=None, status="finished", iterations=2, **metrics):
    value = 0.1 * number if value is None else value
    labels = ["sft", *(f"iteration-{index}" for index in range(iterations))][: iterations + 1]
    return TrialRecord(
        name=f"trial-{number}",
        parameters=settings,
        status=status,
        error=HOSTILE if status == "failed" else "",
        results=tuple(result(label, value + 0.001 * index, **metrics) for index, label in enumerate(labels)),
        seconds={"compute": 3.0, "decode": 2.0},
        total_s=4.5,
        shared=("data", "sft"),
        shared_s=1.5,
        command=f"python -m jobs.train_selfplay name={HOSTILE}{number}",
    )


def grid(*trials, parameters=(BETA, NEGATIVES), chosen=None, **changes):
    data = SweepData(
        name=HOSTILE, metric="ndcg@5", diversity="div_ratio@5", parameters=parameters, trials=trials, chosen=chosen,
        command=HOSTILE, started="today", total_s=9.0, versions={"torch": "2"},
    )  # fmt: skip
    return dataclasses.replace(data, **changes)


def settings(beta, negatives):
    return {"preference.beta": beta, "selfplay.num_negatives": negatives}


FULL = grid(
    trial(1, settings(0.05, 1)),
    trial(2, settings(0.05, 2)),
    trial(3, settings(0.1, 1), status="failed", iterations=0),
    chosen="trial-2",
)


def parse(data):
    page = render_sweep(data)
    return page, ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def test_the_page_is_well_formed_and_hostile_text_is_escaped():
    page, root = parse(FULL)
    assert not list(root.iter("script"))
    assert "alert(&quot;it&#x27;s&quot;)" in page
    assert {section.get("id") for section in root.iter("section")} == {
        "chosen", "trials", "pareto", "metrics", "iterations", "cost", "commands", "space",
    }  # fmt: skip


def test_nothing_is_fetched():
    page, root = parse(FULL)
    assert not re.search(r"url\(|@import|https?:", page)
    assert not [element for element in root.iter() if element.get("src") or element.get("href")]


def test_a_map_of_every_metric_with_failed_and_missing_cells():
    """Four metrics are measured. (0.1, 1) failed and (0.1, 2) was not run, in each of their maps."""
    page, _ = parse(FULL)
    assert page.count('<rect class="chosen"') == 4
    assert page.count(">failed</text>") == page.count(">not run</text>") == 4
    assert page.count("share of rows, higher is better") >= 1
    assert page.count("share of places, lower is better") == 1


def test_the_strongest_colour_is_the_best_value_in_either_direction():
    """Values .1 and .2: .5 is the opacity of the larger NDCG and of the smaller ORRatio."""
    page, _ = parse(FULL)
    maps = {name: page.split(f"<figcaption>{name}")[1].split("</figure>")[0] for name in ("NDCG@5", "ORRatio@5")}
    for name, best in (("NDCG@5", "0.2020"), ("ORRatio@5", "0.1020")):
        strong = maps[name].index('fill-opacity="0.500"')
        assert maps[name][strong:].split('class="value"')[1].split("</text>")[0].endswith(f">{best}"), name


def test_stopped_and_unfinished_trials_say_so():
    page, _ = parse(
        grid(
            trial(1, settings(0.05, 1), status="stopped", iterations=1),
            trial(2, settings(0.05, 2), status="unfinished", iterations=-1),
        )
    )
    assert "stopped after iteration-0" in page
    assert ">stopped</text>" in page
    assert ">unfinished</text>" in page
    assert "No trial has finished" in page
    assert "Not finished: #2." in page
    assert "dot rest hollow" in page


def test_a_choice_on_the_test_rows_is_a_warning():
    assert "compared on the test rows" in render_sweep(dataclasses.replace(FULL, split="test"))
    assert "compared on the test rows" not in render_sweep(FULL)


@pytest.mark.parametrize(
    "data",
    [
        grid(),
        grid(trial(1, settings(0.05, 1)), chosen="trial-1"),
        grid(trial(1, settings(0.05, 1), iterations=0), chosen="trial-1"),
        grid(trial(1, settings(0.05, 1), value=math.nan)),
        grid(trial(1, settings(9, 9)), trial(2, {}), chosen="trial-1"),
        grid(trial(1, {"preference.beta": 0.1}), parameters=(BETA,), chosen="trial-1"),
        grid(trial(1, {"preference.beta": 0.1}), parameters=(RANGE,), chosen="trial-1"),
        grid(trial(1, {"preference.beta": 0.1}, value=math.nan), parameters=(RANGE, NEGATIVES)),
        grid(trial(1, settings(0.1, 1) | {"preference.loss": HOSTILE}), parameters=(BETA, NEGATIVES, LOSS)),
        grid(trial(1, settings(0.1, 1), target_logp=-12.5, mrr=math.nan, valid=0.9)),
        grid(trial(1, settings(0.1, 1), status="failed", iterations=-1), parameters=(RANGE, NEGATIVES)),
        grid(trial(1, settings(0.1, 1)), metric="or_ratio@5", mode="min", diversity="or_ratio@5", chosen="trial-1"),
        grid(trial(1, settings(0.1, 1)), metric="mrr", diversity="mgu@9"),
        grid(trial(1, {}), parameters=()),
    ],
)
def test_every_shape_of_sweep_is_drawn(data, tmp_path):
    _, root = parse(data)
    for element in root.iter():
        for name, value in element.attrib.items():
            assert name not in ("x", "y", "cx", "cy", "d", "width") or "nan" not in value, (element.tag, value)
    write_sweep_report(tmp_path, data)
    # NaN is not itself: what is read back is compared as it is written.
    assert render_sweep(read_sweep(tmp_path)) == (tmp_path / "sweep.html").read_text(encoding="utf-8")


def test_one_parameter_a_range_and_three_parameters_are_scattered():
    ranges = [{"preference.beta": 10.0**-index, "preference.learning_rate": 2e-5 * index} for index in (1, 2)]
    page, _ = parse(grid(*(trial(i, s) for i, s in enumerate(ranges)), parameters=(RANGE, RATE), chosen="trial-1"))
    assert 'class="cell"' not in page
    assert "preference.beta (logarithmic)" in page
    assert "NDCG@5 ↑ over learning_rate" in page
    assert "All other metrics" in page
    assert "other trials" in page
    three, _ = parse(grid(trial(1, settings(0.1, 1) | {"preference.loss": "dpo"}), parameters=(BETA, NEGATIVES, LOSS)))
    assert len(re.findall("<figcaption>[^<]* ↑ over ", three)) == 9, "NDCG, DivRatio and HR over three parameters"


def test_a_logarithmic_axis_places_a_decade_halfway_between_two():
    """0.01 to 1: 0.1 is in the middle of the plot. 340 wide, 60 + 12 and 10 + 12 around it: (72 + 318) / 2 = 195."""
    trials = [trial(i, {"preference.beta": value}) for i, value in enumerate((0.01, 0.1, 1.0), start=1)]
    page, _ = parse(grid(*trials, parameters=(RANGE,)))
    plot = page.split("<figcaption>NDCG@5 ↑ over beta")[1].split("</figure>")[0]
    assert re.findall(r'cx="(\S+)"', plot) == ["72.0", "195.0", "318.0"]


def test_the_front_goes_from_point_to_point_by_the_worse_corner():
    """(.1, .9), (.2, .8), both best: the corner is (.1, .8), left of the second and below the first."""
    plot = pareto_plot(grid(trial(1, settings(0.05, 1), iterations=0), trial(2, settings(0.05, 2), iterations=0)))
    (path,) = re.findall(r'<path class="line s0 thin" d="M(\S+) (\S+) L(\S+) (\S+) L(\S+) (\S+)"', plot)
    x1, y1, x2, y2, x3, y3 = map(float, path)
    assert (x2, y2) == (x1, y3)
    assert x3 > x1
    assert y3 > y1


def test_the_chosen_trial_is_named_on_the_front():
    plot = pareto_plot(FULL)
    assert "chosen: #2 beta=0.05 num_negatives=2" in plot
    assert 'class="dot ring"' in plot
    assert "not dominated" in plot


def test_a_trial_that_failed_is_not_on_the_front():
    assert "#3" not in pareto_plot(FULL)


def test_every_trial_has_its_command_and_its_cost():
    page, root = parse(FULL)
    (items,) = (item for item in root.iter("ol") if item.get("class") == "commands")
    assert len(items) == 3
    assert "<td>13.5</td>" in page, "3 x 4.5 s"
    assert "<td>4.5</td><td>3.0</td><td>2.0</td><td>2</td><td>1.5</td>" in page


def test_labels_never_cover_each_other_a_dot_or_a_path():
    """Twelve labels at one crowded spot: those that are placed are apart, the first is, and some find no room."""
    labels = [(100.0 + i, 100.0, f"#{i}") for i in range(12)]
    path = [(40.0, 100.0), (160.0, 100.0)]
    placed = place_labels(labels, [(x, y) for x, y, _ in labels], [path], box=(0, 0, 200, 200))
    found = [
        (float(x), float(y), text)
        for x, y, text in (re.findall(r'x="(\S+)" y="(\S+)">(.+?)<', part)[0] for part in placed)
    ]
    assert found[0][2] == "#0"
    assert 2 <= len(found) < 12
    boxes = [(x, y - 8, x + 6 * len(text), y + 3) for x, y, text in found]
    assert all(box[1] > 101 or box[3] < 99 for box in boxes), "none lies on the path"
    for index, a in enumerate(boxes):
        for b in boxes[:index]:
            assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]


def test_names_are_short_unless_two_parameters_share_them():
    parameters = [SweepParameter(name=name) for name in ("sft.learning_rate", "preference.learning_rate", "seed")]
    assert list(short_names(parameters).values()) == ["sft.learning_rate", "preference.learning_rate", "seed"]
    assert trial_labels(FULL)["trial-2"] == "#2 beta=0.05 num_negatives=2"


def test_the_table_has_a_row_per_trial_and_policy(tmp_path):
    data = dataclasses.replace(FULL, trials=(*FULL.trials, trial(4, settings(0.1, 2), iterations=-1)))
    write_sweep_report(tmp_path, data)
    with (tmp_path / "sweep.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["policy"] for row in rows] == ["sft", "iteration-0", "iteration-1"] * 2 + ["sft", ""]
    assert [row["iteration"] for row in rows] == ["0", "1", "2"] * 2 + ["0", ""]
    assert rows[2]["ndcg@5"] == "0.10200000000000001"
    assert rows[3]["chosen"] == "True"
    assert rows[3]["selfplay.num_negatives"] == "2"
    assert rows[0]["seconds/compute"] == "3.0"
    assert rows[6]["status"] == "failed"
    assert rows[7]["ndcg@5"] == ""


def test_an_undefined_metric_is_an_empty_field(tmp_path):
    write_sweep_report(tmp_path, grid(trial(1, settings(0.1, 1), value=math.nan)))
    with (tmp_path / "sweep.csv").open(encoding="utf-8", newline="") as file:
        assert next(csv.DictReader(file))["ndcg@5"] == ""
    assert sweep_rows(grid()) == []


def test_a_metric_without_a_display_name_is_shown_as_it_is():
    page, _ = parse(dataclasses.replace(FULL, metric="hr_se@5", diversity="own"))
    assert "hr_se@5 ↑" in page
    (own,) = [column for column in all_columns([result("sft", 0.1, own=0.2)]) if column.name == "own"]
    assert own.title == "own"
    assert column_of("own").meaning == "higher is better"
    assert column_of("own@x").key == "own@x"
