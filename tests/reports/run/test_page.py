"""The report: well-formed, self-contained, escaped, and honest about accuracy and falling log-probabilities."""

import dataclasses
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from sprec_ray.config.load import config_to_dict, flatten
from sprec_ray.config.run import RunConfig
from sprec_ray.reports.paper import differences_from_paper
from sprec_ray.reports.run.curves import fallen_phases
from sprec_ray.reports.run.page import ReportData, derive_warnings, render_report, write_report
from sprec_ray.reports.run.sections import before_after
from sprec_ray.reports.svg.plots import Axes, Bar, Series, line_plot, paired_bars, ticks, timeline
from sprec_ray.reports.tables import best_labels, columns, format_table, hr_differs, more_table
from sprec_ray.storage.timeline import Span
from sprec_ray.types import EvalResult

HOSTILE = '<script>alert("it\'s")</script> & \x0b\x00 \u2028'
CONFIG = flatten(config_to_dict(RunConfig()))


def result(label, *, hr=0.03, num_rows=1000, **metrics):
    values = {"div_ratio@1": 0.2, "or_ratio@1": 0.3, "mgu@1": 0.05, "dgu@1": 0.1, "valid": 0.95, "ndcg@5": hr / 2}
    return EvalResult(
        label=label,
        metrics={"hr@5": hr, "hr_se@5": math.sqrt(hr * (1 - hr) / num_rows), **values, **metrics},
        counts={"num_rows": num_rows},
        top_items=((HOSTILE, 30), ('A Child Called "It"', 20), ("long " * 200, 10)),
        genre_gaps={HOSTILE: 0.1, "B": -0.1},
    )


def steps(num=20, fall=0.0):
    return [
        {
            "loss": 0.7 - 0.01 * index,
            "reward_chosen": -fall * index / (num - 1),
            "reward_rejected": -2 * fall * index / (num - 1),
            "margin": 0.01 * index,
            "accuracy_one": 0.5,
            "accuracy_all": 0.5,
            "logp_chosen": -10.0,
            "logp_rejected": -9.0,
        }
        for index in range(num)
    ]


@pytest.fixture
def run():
    return ReportData(
        title=HOSTILE,
        command=HOSTILE,
        started="today",
        seed=0,
        total_s=100,
        engines={"decoding": HOSTILE},
        versions={"torch": "2"},
        hardware={"machine": HOSTILE},
        results=(
            result("base", valid=0.01, **{"div_ratio@1": 0.9}),
            result("sft"),
            result("iteration-0", hr=0.04, **{"div_ratio@1": 0.4, "mgu@1": math.nan}),
            result(HOSTILE, hr=0.5),
        ),
        training={"sft": [{"loss": 1.0}], "iteration-0/sft": [{"loss": math.nan}], "iteration-0/preference": steps()},
        timeline=(
            Span(name="sft", kind="compute", start_s=0, duration_s=40),
            Span(name=HOSTILE, kind=HOSTILE, start_s=40, duration_s=60),
        ),
        dropped={HOSTILE: 3},
        counters={"iteration-0": {"beams": 10, "invalid": 1, HOSTILE: 2}},
        warnings=(HOSTILE,),
        config=CONFIG | {"data.path": HOSTILE},
        differences=differences_from_paper(CONFIG),
    )


def test_the_page_is_well_formed_and_hostile_text_is_escaped(run):
    page = render_report(run)
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    assert not list(root.iter("script"))
    assert "<script" not in page
    assert "alert(&quot;it&#x27;s&quot;)" in page
    assert {section.get("id") for section in root.iter("section")} == {
        "results", "stages", "items", "genres", "training", "dropped", "time", "paper", "config",
    }  # fmt: skip
    text = "".join(root.itertext())
    assert 'A Child Called "It"' in text
    for key, value in CONFIG.items():
        assert key in text, (key, value)


def test_the_page_loads_nothing(run):
    class Loads(HTMLParser):
        found: list

        def handle_starttag(self, tag, attributes):
            names = {name for name, _ in attributes}
            if tag in ("link", "script", "img", "iframe", "object", "use") or names & {"src", "href", "srcset"}:
                self.found.append(tag)

    parser = Loads()
    parser.found = []
    page = render_report(run)
    parser.feed(page)
    assert parser.found == []
    assert "http" not in page
    assert not re.search(r"url\(|@import", page)


def test_nothing_but_a_title_makes_a_page(tmp_path):
    write_report(tmp_path / "report.html", ReportData(title="empty"))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    assert not list(root.iter("section"))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ReportData) if field.name != "title"])
def test_every_part_may_be_missing(run, field):
    default = getattr(ReportData(title="x"), field)
    ElementTree.fromstring(
        render_report(dataclasses.replace(run, **{field: default})).removeprefix("<!DOCTYPE html>\n")
    )


def test_the_same_columns_in_a_terminal(run):
    lines = format_table(run.results).split("\n")
    assert re.split(r"\s{2,}", lines[0].strip()) == [column.heading for column in columns(run.results)]
    assert lines[1].split()[:4] == ["base", "0.0300", "±", "0.0054"]
    assert "0.4000*" in lines[3]
    assert "n/a" in lines[3]
    assert len(lines) == len(run.results) + 2


def test_the_best_is_taken_among_trained_policies_in_the_right_direction(run):
    found = {column.key: best_labels(run.results, column) for column in columns(run.results)}
    assert found["div_ratio@1"] == {"iteration-0"}
    assert found["hr@5"] == {"iteration-0"}
    assert found["or_ratio@1"] == {"sft", "iteration-0"}
    assert found["mgu@1"] == set()


def test_accuracy_differs_only_beyond_two_standard_errors():
    """SE of 0.03 and 0.04 at n = 1000: .00539 and .00620, together .0082: .01 is within; at 10^5 it is not."""
    assert hr_differs(result("sft"), result("iteration-0", hr=0.04), 5) is False
    assert hr_differs(result("sft", num_rows=10**5), result("iteration-0", hr=0.04, num_rows=10**5), 5) is True
    assert hr_differs(result("sft", hr=math.nan), result("iteration-0"), 5) is None


def test_before_is_the_first_sft_and_after_the_last_iteration(run):
    before, after = before_after(run.results)
    assert (before.label, after.label) == ("sft", "iteration-0")
    assert before_after(run.results[:2]) is None


def test_a_fall_of_the_chosen_log_probability_is_a_warning(run):
    """Rewards fall to -0.5 with beta 0.1; the last two of 20 steps average -0.487, so 4.87 nats."""
    fallen = {"p": steps(fall=0.5)}
    assert list(fallen_phases(fallen, beta=0.1)) == [("p", pytest.approx(4.8684, abs=1e-3))]
    assert list(fallen_phases(fallen, beta=1.0)) == []
    assert list(fallen_phases({"p": [{"logp_chosen": -10.0}, {"logp_chosen": -20.0}]}, beta=None)) == [("p", 10.0)]
    warned = derive_warnings(dataclasses.replace(run, training=fallen))
    assert any("chosen titles fell: p by 4.9 nats" in text for text in warned)


def test_bad_answers_are_warnings_but_not_of_the_base_model(run):
    bad = dataclasses.replace(
        run,
        results=(result("base", valid=0.0), result("sft", valid=0.8)),
        counters={
            "iteration-0": {"examples": 10, "beams": 20, "top_equal_to_target": 6},
            "iteration-1": {"examples": 10, "top_equal_to_target": 5},
        },
    )
    warned = derive_warnings(bad)[1:]
    assert len(warned) == 2
    assert warned[0].startswith("sft: 80.0 %")
    assert warned[1].startswith("iteration-0: 6 of 10")


def test_ticks_are_round_and_cover_the_range():
    assert ticks(0, 0.07) == [0, 0.02, 0.04, 0.06, 0.08]
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    for low, high in ((0.0, 0.0), (5.0, 5.0), (-3.2, 17.9), (1e-9, 2e-9), (-2e6, -1e6)):
        found = ticks(low, high)
        assert found[0] <= low
        assert found[-1] >= high
        assert 2 <= len(found) <= 8


def test_a_line_breaks_at_nan():
    plot = line_plot("x", [Series(name="a", points=[(0, 1), (1, math.nan), (2, 3), (3, 4)])], Axes())
    assert re.search(r' d="M\S+ \S+ M\S+ \S+ L\S+ \S+"', plot)


def test_plots_without_a_finite_value_are_left_out():
    assert line_plot("x", [Series(name="a", points=[(0, math.nan)])], Axes()) == ""
    assert paired_bars("x", ("a", "b"), [("g", math.nan, math.nan)]) == ""
    assert timeline([], 5) == ""


def test_a_bar_is_as_long_as_its_share_of_the_time():
    """960 wide, 190 + 24 around the plot: a bar of half the time is 373 wide and starts at 190."""
    bars = [Bar(css="compute", start_s=0, duration_s=5, hint="h")]
    assert 'x="190.0" y="4" height="13" rx="1.5" width="373.0"' in timeline([("a", bars)], 10)


def test_the_second_table_holds_what_is_defined_and_marks_no_winner_without_a_direction():
    values = {"gini@1": 0.5, "gini@5": 0.4, "tail_share@5": 0.1, "arp@5": math.nan}
    results = [
        result("sft", **values),
        result("iteration-0", **{**values, "gini@5": 0.3, "tail_share@5": 0.2}),
    ]
    page = more_table(results)
    root = ElementTree.fromstring(page)
    assert [cell.text for cell in root.iter("th") if cell.get("scope") == "col"] == ["policy", "Gini@5 ↓", "Tail@5"]
    assert [found.text for found in root.iter("strong")] == ["0.3000"]
    assert more_table([result("sft"), result("iteration-0")]) == ""
    assert "Gini" not in format_table(results)


def test_pairs_have_a_table_of_their_own_scores():
    metrics = {"auc": 0.55, "auc_se": 0.01, "auc_sum_logp": 0.5, "pair_accuracy": 0.6, "pair_accuracy_se": 0.02}
    results = [EvalResult(label=label, metrics=metrics, counts={"num_rows": 9}) for label in ("sft", "iteration-0")]
    page = render_report(ReportData(title="pairs", results=tuple(results)))
    assert "0.5500 ± 0.0100" in page
    assert "AUC (sum log p) ↑" in page
    assert "Ties count 1/2" in page
    assert "Most recommended" not in page
