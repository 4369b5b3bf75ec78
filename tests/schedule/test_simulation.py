"""The simulated schedule, against schedules made by hand."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from sprec_ray.schedule.simulation import (
    Layout,
    Placement,
    Span,
    StageTimes,
    Workload,
    best_split,
    run_spans,
    scale,
    simulate,
    stops_scaling,
)

TIMES = StageTimes(decode_s=1.0, test_decode_s=1.0, sft_s=1.0, preference_s=2.0)
WORK = Workload(num_examples=32, num_groups=32, num_test=8, chunk_size=8, sft_batch=16, preference_batch=8)
ALL = StageTimes(
    decode_s=1.0,
    test_decode_s=1.0,
    sft_s=1.0,
    preference_s=2.0,
    step_s=0.5,
    transfer_s=0.25,
    latency_s=0.125,
    sft_load_s=3.0,
    preference_load_s=4.0,
    swap_s=2.0,
    launch_workers_s=20.0,
    launch_decoders_s=30.0,
    evaluate_s=5.0,
    other_s=1.0,
)


def layout(placement: Placement, workers: int, decoders: int, cores: float = inf) -> Layout:
    return Layout(placement=placement, num_workers=workers, num_decoders=decoders, cores=cores)


def test_side_by_side_the_longer_of_decoding_and_sft_is_waited_for() -> None:
    """Decoding 8 + 32 prompts takes 40 s, the SFT beside it 32 s; then 32 groups of 2 s: 40 + 64 = 104 s.

    Of the 208 s of two devices 40 + 32 + 64 = 136 s are busy.
    """
    iteration = simulate(TIMES, WORK, layout("split", 1, 1))
    assert iteration.seconds == 104
    assert iteration.utilisation == pytest.approx(136 / 208)
    assert iteration.terms == {"train": 64, "decode": 40}


@pytest.mark.parametrize("placement", ["colocate", "sequential"])
def test_in_turns_everything_adds_up(placement: Placement) -> None:
    """8 + 32 + 32 + 64 = 136 s on one device, always busy."""
    iteration = simulate(TIMES, WORK, layout(placement, 1, 1))
    assert iteration.seconds == 136
    assert iteration.utilisation == 1
    assert iteration.terms == {"train": 96, "decode": 40}


def test_every_cost_counts_once_in_turns() -> None:
    """Swap 2, test 8, evaluation 5, negatives 32; loads 3 and 4, other 1, two SFT steps and four of preference with 0.5
    each: 2 + 8 + 5 + 32 + 3 + (32 + 1) + 1 + 4 + (64 + 2) = 154, and 50 more for two launches."""
    assert simulate(ALL, WORK, layout("colocate", 1, 1)).seconds == 154
    assert simulate(ALL, WORK, layout("sequential", 1, 1)).seconds == 204


def test_workers_share_a_batch_and_pay_for_the_all_reduce() -> None:
    """Four workers: SFT 2 steps of 16 / 4 rows, preference 4 of 8 / 4 groups. A step's all-reduce costs
    2 * 3/4 * 0.25 + 2 * 2 * 0.125 = 0.875 s, its serial part 0.5 s.
    Decoding: 1 chunk of the test rows, 5 s of evaluation, 4 chunks of negatives in one round: 2 + 8 + 5 + 8."""
    iteration = simulate(ALL, WORK, layout("colocate", 4, 4))
    sft, preference = 2 * (4 + 0.5 + 0.875), 4 * (4 + 0.5 + 0.875)
    assert iteration.seconds == pytest.approx(2 + 8 + 5 + 8 + 3 + sft + 1 + 4 + preference)
    assert iteration.terms["all-reduce"] == pytest.approx(6 * 0.875)
    assert iteration.terms["train"] == pytest.approx(8 + 16)


def test_chunks_are_handed_out_in_rounds() -> None:
    """Three decoders and four chunks: two rounds of 8 s, in the second one works."""
    spans = {span.name: span for span in simulate(TIMES, WORK, layout("split", 1, 3)).spans}
    assert (spans["negatives"].end - spans["negatives"].start, spans["negatives"].width) == (8, 3)
    last = spans["negatives: last round"]
    assert (last.end - last.start, last.width) == (8, 1)


def test_a_partial_batch_and_a_partial_chunk_are_shorter() -> None:
    """36 examples: batches of 16, 16 and 4 over two workers are 8 + 8 + 2 rows; chunks 8, 8, 8, 8, 4 over two."""
    work = replace(WORK, num_examples=36, num_test=8)
    spans = {span.name: span for span in simulate(TIMES, work, layout("split", 2, 2)).spans}
    assert spans["sft"].end - spans["sft"].start == 18
    assert spans["negatives: last round"].end == 8 + 16 + 4


def test_more_workers_than_a_batch_has_examples_are_not_used() -> None:
    """A batch of 8 takes 8 workers; with 10, the batch of 16 still takes 8, for it must be a multiple of them."""
    eight, ten = (simulate(TIMES, WORK, layout("colocate", workers, 8)).seconds for workers in (8, 10))
    assert eight == ten


def test_processes_share_the_cores() -> None:
    """On one core nothing is gained side by side: 136 s, as in turns. On two, worker and decoder are undisturbed."""
    assert simulate(TIMES, WORK, layout("split", 1, 1, cores=1)).seconds == pytest.approx(136)
    assert simulate(TIMES, WORK, layout("split", 1, 1, cores=2)).seconds == 104
    assert simulate(TIMES, WORK, layout("colocate", 2, 2, cores=1)).seconds == pytest.approx(136)
    assert simulate(TIMES, WORK, layout("colocate", 2, 2, cores=2)).seconds == pytest.approx(8 + 16 + 16 + 32)


def test_a_slowed_span_goes_on_undisturbed_when_the_other_is_over() -> None:
    """10 s and 4 s of work on one core: both at half speed until 8 s, then the other 6 s alone."""
    long = Span(name="long", lane="workers", terms={"train": 10})
    short = Span(name="short", lane="decoders", terms={"decode": 4})
    run_spans([long, short], cores=1)
    assert (short.end, long.end) == (8, 14)


def test_without_sft_the_decoding_is_waited_for() -> None:
    assert simulate(TIMES, replace(WORK, sft_batch=0), layout("split", 1, 1)).seconds == 40 + 64


def test_the_best_split_gives_the_longer_side_more() -> None:
    """Four devices. Two and two: decoding 8 + 16, SFT 16, preference 32: 56 s. One trains: 24 + 64. Batches of 8 and 16
    take no three workers."""
    iteration = best_split(TIMES, WORK, 4)
    assert (iteration.layout.num_workers, iteration.layout.num_decoders) == (2, 2)
    assert iteration.seconds == 24 + 32


@pytest.mark.parametrize("placement", ["split", "colocate", "sequential"])
def test_scaling_ends_where_batch_and_chunks_do(placement: Placement) -> None:
    """Eight workers take the batch, four decoders the chunks: beyond both nothing gets faster."""
    most = scale(TIMES, WORK, placement, 16).seconds
    assert scale(TIMES, WORK, placement, 512).seconds == most == 8 + 8 + (0 if placement == "split" else 4) + 8
    count, term = stops_scaling(TIMES, WORK, placement)
    assert count <= 16
    assert term in {"train", "decode"}


def test_a_long_launch_stops_sequential_first() -> None:
    """On two devices 400 + 8 + 16 + 16 + 32 s, on four 400 + 8 + 8 + 8 + 16: 32 of 472 s are less than a tenth."""
    times = replace(TIMES, launch_workers_s=200, launch_decoders_s=200)
    assert stops_scaling(times, WORK, "sequential") == (2, "launch")
    assert stops_scaling(times, WORK, "colocate")[0] > 2
