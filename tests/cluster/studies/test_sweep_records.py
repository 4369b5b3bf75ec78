"""What a trial's folder says of its cost."""

from __future__ import annotations

from sprec_ray.cluster.studies.sweep_records import is_span_of

SPANS = (
    "data",
    "sft",
    "sft: valid rows",
    "sft: grounding",
    "iteration 0: negatives",
    "iteration 0: decoding: swap",
    "iteration 0: sft",
    "iteration 0: softmax_dpo",
    "iteration-0: valid rows",
    "iteration 1: softmax_dpo",
)


def test_every_span_counts_for_one_stage_at_most() -> None:
    spans_of = {
        "data": ["data"],
        "sft": ["sft"],
        "evaluations-valid/sft": ["sft: valid rows", "sft: grounding"],
        "evaluations/iteration-0": ["iteration-0: valid rows"],
        "iteration-0/rollouts": ["iteration 0: negatives"],
        "iteration-0/sft": ["iteration 0: sft"],
        "iteration-0/preference": ["iteration 0: softmax_dpo"],
        "iteration-0/groups": [],
    }
    assert {stage: [span for span in SPANS if is_span_of(stage, span)] for stage in spans_of} == spans_of
