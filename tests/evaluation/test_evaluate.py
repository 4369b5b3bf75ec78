"""One policy's results, from generated texts or from ready lists."""

import dataclasses
import logging
import math

import numpy as np
import pytest

from sprec_ray.data.catalog import Catalog
from sprec_ray.evaluation.evaluate import EvaluationTask, evaluate_predictions

CATALOG = Catalog(
    titles=("Dune", "Emma", 'A Child Called "It"', "Ulysses"),
    genres={"Dune": ("sf",), "Emma": ("romance",), 'A Child Called "It"': ("memoir", "sf"), "Ulysses": ()},
)
TASK = EvaluationTask(
    targets=("Dune", 'A Child Called "It"', "Lost Book"),
    histories=(("Emma", "Emma"), ("Dune", "Unheard Of"), ()),
    catalog=CATALOG,
    kept_genres=("sf", "romance"),
    popularity={"Dune": 6, "Emma": 3, "not in the catalogue": 9},
    ks=(1, 2),
)
GENERATED = ['"Dune"\n', '"A Child Called "It""\n', "Emma"]


def embed(texts):
    """Titles on a line by their first letter."""
    return np.array([[ord(text[0]) if text else 0] for text in texts], dtype=np.float32)


def test_generated_texts_by_hand():
    """Letters: Dune D=68, Emma E=69, A Child A=65, Ulysses U=85.

    Row 0 ranks Dune, Emma; row 1 A Child, Dune; row 2 (unquoted, target unknown) Emma, Dune. Hits@1 = 2 of 3.
    k = 1: sf gets 1 (Dune) + 1 (A Child: one kept genre), romance 1: GP = (2/3, 1/3).
    Histories: Emma, Emma, Dune, one unknown: GH = (1/3, 2/3). Gaps (+1/3, -1/3).
    """
    result = evaluate_predictions("sft", GENERATED, TASK, embed=embed)
    assert result.metrics["hr@1"] == pytest.approx(2 / 3)
    assert result.metrics["div_ratio@1"] == 1
    assert result.metrics["div_ratio@2"] == pytest.approx(3 / 6)
    assert result.metrics["mgu@1"] == pytest.approx(1 / 3)
    assert result.genre_gaps == pytest.approx({"sf": 1 / 3, "romance": -1 / 3})
    assert result.metrics["valid"] == pytest.approx(2 / 3)
    assert result.top_items == (("Dune", 1), ("Emma", 1), ('A Child Called "It"', 1))
    assert result.counts == {
        "num_rows": 3,
        "num_parse_failures": 1,
        "num_in_catalog": 3,
        "num_valid": 2,
        "num_distinct_valid": 2,
        "num_unknown_targets": 1,
        "num_history_items": 4,
        "num_unknown_history_items": 1,
        "num_hits@1": 2,
        "num_distinct@1": 3,
        "num_hits@2": 2,
        "num_distinct@2": 3,
    }


def test_ready_lists_of_the_same_titles_give_the_same_metrics():
    lists = [["Dune", "Emma", "Ulysses"], ['A Child Called "It"', "Dune"], ["Emma", "Dune"]]
    grounded = evaluate_predictions("sft", GENERATED, TASK, embed=embed)
    listed = evaluate_predictions("sft", GENERATED, TASK, ranked_titles=lists)
    assert listed.metrics == grounded.metrics
    assert listed.top_items == grounded.top_items


def test_odd_lists_are_counted():
    """A foreign title is a distinct recommendation, even where it is the (unknown) target; it does not hit."""
    lists = [["Lost Book", "Lost Book"], ["Dune"], ["Lost Book", "Emma"]]
    result = evaluate_predictions("popularity", None, TASK, ranked_titles=lists)
    assert result.counts["num_grounded_unknown"] == 3
    assert result.counts["num_short_lists"] == 1
    assert result.counts["num_lists_with_repeats"] == 1
    assert result.top_items == (("Lost Book", 2), ("Dune", 1))
    assert result.metrics["hr@2"] == 0
    assert result.metrics["div_ratio@2"] == 3 / 6
    assert "valid" not in result.metrics


def test_exposure_and_content_by_hand():
    """Row 0 ranks Dune, Emma; row 1 A Child, Dune; row 2 Emma, Dune. Events: Dune 6, Emma 3, the others none.

    Dune is the head (nothing is more popular), Emma holds a third of the events, so mid, the others the tail. k = 2:
    rows' shares of the head 1/2 each; of the mid 1/2, 0, 1/2; of the tail 0, 1/2, 0. ARP: (4.5 + 3 + 4.5) / 3 = 4.
    ILD: {sf} to {romance} 1, {memoir, sf} to {sf} 1/2, 1. Coverage 3/4. Entropy of (3, 2, 1)/6.
    """
    found = evaluate_predictions("sft", GENERATED, TASK, embed=embed).metrics
    assert [found[f"{group}_share@2"] for group in ("head", "mid", "tail")] == pytest.approx([1 / 2, 1 / 3, 1 / 6])
    assert found["arp@2"] == pytest.approx(4)
    assert found["ild@2"] == pytest.approx(2.5 / 3)
    assert found["coverage@2"] == 3 / 4
    assert found["entropy@2"] == pytest.approx(-sum(p * math.log(p) for p in (1 / 2, 1 / 3, 1 / 6)))
    assert "ild@1" not in found


def test_without_genres_fairness_is_undefined_and_said_once(caplog):
    bare = Catalog(titles=CATALOG.titles, genres={})
    with caplog.at_level(logging.WARNING):
        task = dataclasses.replace(TASK, kept_genres=(), catalog=bare)
        result = evaluate_predictions("sft", GENERATED, task, embed=embed)
    undefined = {name for name, value in result.metrics.items() if math.isnan(value)}
    assert undefined == {f"{name}@{k}" for name in ("mgu", "dgu", "mgu_whole", "dgu_whole") for k in (1, 2)} | {"ild@2"}
    assert len(caplog.records) == 1
    assert "no genres" in caplog.text
    assert result.genre_gaps == {}


def test_without_training_events_popularity_is_undefined():
    found = evaluate_predictions("sft", GENERATED, dataclasses.replace(TASK, popularity={}), embed=embed).metrics
    undefined = {name for name, value in found.items() if math.isnan(value)}
    assert undefined == {f"{name}@{k}" for name in ("head_share", "mid_share", "tail_share", "arp") for k in (1, 2)}


def test_the_published_denominators_are_a_choice():
    published = evaluate_predictions("sft", GENERATED, dataclasses.replace(TASK, rows="published"), embed=embed)
    assert published.metrics["div_ratio@1"] == 2 / 2
    assert published.metrics["or_ratio@1"] == 2 / 2
    assert published.metrics["hr@1"] == pytest.approx(2 / 3)
    assert published.genre_gaps == pytest.approx({"sf": 2 / 3, "romance": -2 / 3})


def test_rows_that_do_not_line_up_are_an_error():
    with pytest.raises(ValueError, match="2 generated do not match 3 targets"):
        evaluate_predictions("sft", GENERATED[:2], TASK, embed=embed)
    with pytest.raises(ValueError, match="1 ranked lists do not match 3 targets"):
        evaluate_predictions("sft", None, TASK, ranked_titles=[[]])
    with pytest.raises(ValueError, match="pass either"):
        evaluate_predictions("sft", GENERATED, TASK)
