"""How long an iteration takes on any number of GPUs, from measured stage times; no Ray, no model, no clock.

What is taken apart, and how it scales:

- a training phase makes ``steps = epochs * ceil(examples / global batch)`` steps. A step costs the largest share of the
  batch, ``ceil(batch / workers)`` examples, and what no worker shortens: a serial part, and the all-reduce of the
  adapter, ``2 (w - 1) / w`` transfers and ``2 log2(w)`` latencies. More workers than a batch has examples would idle,
  and a batch must be a multiple of them: the others are not used.
- decoding hands out chunks; ``ceil(chunks / decoders)`` rounds. More decoders than chunks idle.
- what a phase loads, a launch, a swap of adapters, pairing and evaluation do not get shorter.
- processes that compute at the same time share ``cores`` (CPUs only): together they get slower, one by one they do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil, inf, log2
from typing import Literal

Placement = Literal["split", "colocate", "sequential"]
Lane = Literal["workers", "decoders", "driver"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Seconds, of one process on a device of its own."""

    decode_s: float
    """Per prompt of the negatives, on one decoder."""
    test_decode_s: float
    """Per test row, on one decoder."""
    sft_s: float
    """Per example, on one worker."""
    preference_s: float
    """Per example of preference training with its reference, on one worker."""
    step_s: float = 0.0
    """Per optimizer step, whatever the number of workers."""
    transfer_s: float = 0.0
    """To send the adapter's gradients once between two workers."""
    latency_s: float = 0.0
    """Of one message between two workers."""
    sft_load_s: float = 0.0
    """Before the first step of the SFT: model, engine, tokens."""
    preference_load_s: float = 0.0
    """Before the first step of preference training."""
    swap_s: float = 0.0
    """To hand an adapter to the decoders, with the canary; where they slept, to wake them too."""
    launch_workers_s: float = 0.0
    launch_decoders_s: float = 0.0
    evaluate_s: float = 0.0
    """To measure decoded test rows."""
    other_s: float = 0.0
    """Per iteration: pairing, files, messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What an iteration computes."""

    num_examples: int
    num_groups: int
    """Preference groups; at most one per example."""
    num_test: int
    chunk_size: int
    sft_batch: int
    """Global batch of the SFT inside an iteration; 0 leaves the SFT out."""
    preference_batch: int
    sft_epochs: int = 1
    preference_epochs: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where it is computed."""

    placement: Placement
    num_workers: int
    num_decoders: int
    cores: float = inf
    """CPU cores that all processes share; infinite where each has a device of its own."""

    @property
    def num_gpus(self) -> int:
        """GPUs that are held: of both sides where they are side by side, else of the larger."""
        together = (self.num_workers, self.num_decoders)
        return sum(together) if self.placement == "split" else max(together)


@dataclass(slots=True, kw_only=True)
class Span:
    """A stage on its lane; the simulation fills ``start`` and ``end``."""

    name: str
    lane: Lane
    terms: dict[str, float]
    """Where its seconds go, when nothing else computes."""
    width: int = 1
    """Processes that compute."""
    after: tuple[str, ...] = ()
    start: float = -1.0
    end: float = -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """A simulated iteration: from a policy to the next one."""

    layout: Layout
    spans: tuple[Span, ...]
    seconds: float
    utilisation: float
    """Share of the held devices' time in which a decoder decodes or a worker trains."""
    terms: dict[str, float] = field(default_factory=dict)
    """Seconds of the critical path by what they are spent on, the longest first."""


def simulate(times: StageTimes, work: Workload, layout: Layout) -> Iteration:
    """One iteration in the middle of a run; the policy of before is evaluated in it."""
    spans = run_spans(_spans(times, work, layout), cores=layout.cores)
    end = max(span.end for span in spans)
    busy = sum(
        span.width * sum(seconds for term, seconds in span.terms.items() if term in {"train", "decode"})
        for span in spans
    )
    return Iteration(
        layout=layout,
        spans=tuple(spans),
        seconds=end,
        utilisation=busy / (layout.num_gpus * end),
        terms=_critical_terms(spans),
    )


def run_spans(spans: Sequence[Span], *, cores: float = inf) -> list[Span]:
    """Start every span when its lane is free and what it waits for is over; together they share the cores."""
    left = {span.name: sum(span.terms.values()) for span in spans}
    waiting, now = list(spans), 0.0
    active: list[Span] = []
    while waiting or active:
        for span in [first for lane in ("workers", "decoders", "driver") for first in _first(waiting, lane)]:
            over = all(other.end >= 0 for other in spans if other.name in span.after)
            if over and all(other.lane != span.lane for other in active):
                span.start = now
                active.append(span)
                waiting.remove(span)
        slowdown = max(1.0, sum(span.width for span in active) / cores)
        passed = min(left[span.name] for span in active)
        now += passed * slowdown
        for span in active:
            left[span.name] -= passed
        for span in [span for span in active if left[span.name] <= 1e-12]:
            span.end = now
            active.remove(span)
    return list(spans)


def _first(waiting: Iterable[Span], lane: str) -> list[Span]:
    return [span for span in waiting if span.lane == lane][:1]


def _spans(times: StageTimes, work: Workload, layout: Layout) -> list[Span]:
    """The stages of ``selfplay.loop``, in the order in which the placement lets them start."""
    workers, decoders = layout.num_workers, layout.num_decoders
    sft = _training(times, workers, work.num_examples, work.sft_batch, work.sft_epochs, times.sft_s)
    preference = _training(
        times, workers, work.num_groups, work.preference_batch, work.preference_epochs, times.preference_s
    )
    decoding = [
        Span(name="swap", lane="decoders", terms={"swap": times.swap_s}, width=decoders),
        *_decoding("test rows", work.num_test, work.chunk_size, decoders, times.test_decode_s),
        *_decoding("negatives", work.num_examples, work.chunk_size, decoders, times.decode_s),
    ]
    evaluation = Span(
        name="evaluation", lane="driver", terms={"evaluate": times.evaluate_s}, after=("test rows: last round",)
    )
    training = [
        Span(name="sft: load", lane="workers", terms={"load": times.sft_load_s}, width=workers),
        Span(name="sft", lane="workers", terms=sft, width=_used(workers, work.sft_batch)),
        Span(name="other", lane="workers", terms={"other": times.other_s}, after=("negatives: last round",)),
        Span(name="preference: load", lane="workers", terms={"load": times.preference_load_s}, width=workers),
        Span(name="preference", lane="workers", terms=preference, width=_used(workers, work.preference_batch)),
    ]
    if not work.sft_batch:
        training = training[2:]
    if layout.placement == "split":
        return [*decoding, evaluation, *training]
    if layout.placement == "sequential":
        launch = {"launch": times.launch_decoders_s}
        decoding.insert(0, Span(name="launch decoders", lane="decoders", terms=launch, width=decoders))
        launch = {"launch": times.launch_workers_s}
        training.insert(0, Span(name="launch workers", lane="workers", terms=launch, width=workers))
    # One after the other: the test rows are decoded and measured, then the negatives are decoded, then comes training.
    next(span for span in decoding if span.name == "negatives").after = ("evaluation",)
    training[0].after = ("negatives: last round",)
    return [*decoding, evaluation, *training]


def _used(workers: int, batch: int) -> int:
    """Workers that take part: the most that divide the batch."""
    return max(count for count in range(1, min(workers, max(1, batch)) + 1) if not batch % count)


def _training(
    times: StageTimes, workers: int, num_examples: int, batch: int, epochs: int, example_s: float
) -> dict[str, float]:
    """The terms of a training phase; no batch, no phase."""
    if not batch:
        return {}
    used = _used(workers, batch)
    steps = epochs * ceil(num_examples / batch)
    reduced = times.transfer_s * 2 * (used - 1) / used + times.latency_s * 2 * log2(used)
    rows = num_rows(workers, num_examples, batch, epochs)
    return {"train": rows * example_s, "step": steps * times.step_s, "all-reduce": steps * reduced}


def num_rows(workers: int, num_examples: int, batch: int, epochs: int) -> int:
    """Examples that the busiest worker computes one after the other."""
    used = _used(workers, batch)
    return epochs * (num_examples // batch * ceil(batch / used) + ceil(num_examples % batch / used))


def _decoding(name: str, num_prompts: int, chunk_size: int, decoders: int, prompt_s: float) -> list[Span]:
    """Full rounds of chunks, and the last round, in which some decoders have nothing left to take."""
    sizes = [min(chunk_size, num_prompts - start) for start in range(0, num_prompts, chunk_size)]
    last = sizes[(len(sizes) - 1) // decoders * decoders :]
    rounds = (len(sizes) - len(last)) // decoders
    return [
        Span(name=name, lane="decoders", terms={"decode": rounds * chunk_size * prompt_s}, width=decoders),
        Span(
            name=f"{name}: last round",
            lane="decoders",
            terms={"decode": max(last, default=0) * prompt_s},
            width=max(1, len(last)),
        ),
    ]


def _critical_terms(spans: Sequence[Span]) -> dict[str, float]:
    """Back from the end, each span's seconds by term, then on with what ended when it started."""
    terms: dict[str, float] = {}
    at = max(spans, key=lambda span: span.end)
    while True:
        alone = sum(at.terms.values())
        for term, seconds in at.terms.items():
            share = (at.end - at.start) * seconds / alone if alone else 0.0
            terms[term] = terms.get(term, 0.0) + share
        if at.start <= 0:
            break
        before = [
            span
            for span in spans
            if span is not at and (span.lane == at.lane or span.name in at.after) and abs(span.end - at.start) < 1e-9
        ]
        # Where a span of no length ended then too, the one that took the time is what was waited for.
        at = max(before, key=lambda span: (-span.start, span.lane == at.lane))
    return dict(sorted(((term, s) for term, s in terms.items() if s > 0), key=lambda item: -item[1]))


def best_split(times: StageTimes, work: Workload, num_gpus: int) -> Iteration:
    """Workers and decoders side by side, divided so that an iteration is shortest."""
    options = sorted({_used(count, work.preference_batch) for count in range(1, num_gpus)})
    layouts = [Layout(placement="split", num_workers=count, num_decoders=num_gpus - count) for count in options]
    return min((simulate(times, work, layout) for layout in layouts), key=lambda iteration: iteration.seconds)


def scale(times: StageTimes, work: Workload, placement: Placement, num_gpus: int) -> Iteration:
    """An iteration on this many GPUs, each with a worker, a decoder, or both in turn."""
    if placement == "split":
        return best_split(times, work, num_gpus)
    workers = _used(num_gpus, work.preference_batch)
    return simulate(times, work, Layout(placement=placement, num_workers=workers, num_decoders=num_gpus))


def stops_scaling(times: StageTimes, work: Workload, placement: Placement, *, gain: float = 0.1) -> tuple[int, str]:
    """From how many GPUs on twice as many save less than ``gain`` of an iteration, and what its time is spent on."""
    num_gpus = 2
    while True:
        here, there = (scale(times, work, placement, count) for count in (num_gpus, 2 * num_gpus))
        if here.seconds - there.seconds < gain * here.seconds:
            return num_gpus, next(iter(here.terms))
        num_gpus *= 2
