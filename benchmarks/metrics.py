"""All metrics against plain Python row by row: ``python benchmarks/metrics.py [rows=N] [items=N] [...]``.

Made-up titles, genres, histories and scores; both sides measure the same rankings and must agree. Preparation (title
to index, genres, words) is timed apart: it is done once for all policies. Also times the significance of all metrics.
``places=1,5,10`` and ``rounds=5`` may be given. Prints Markdown with the medians of the rounds.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from metrics_plain import PlainEvaluation, rank_by_sorting

from sprec_ray.data.catalog import Catalog
from sprec_ray.evaluation.evaluate import EvaluationTask, rank_lists, recommendations
from sprec_ray.metrics.compute import METRICS, compute_metrics
from sprec_ray.metrics.kinds import Metric
from sprec_ray.metrics.ranks import rank_scores
from sprec_ray.metrics.significance import NUM_RESAMPLES, paired_bootstraps

NUM_GENRES, NUM_KEPT, HISTORY = 20, 10, 10


def main(arguments: list[str]) -> None:
    """Time every part on both sides and print the table."""
    options = {"rows": "1000", "items": "32000", "places": "1,5,10", "rounds": "5"}
    options |= dict(argument.split("=", 1) for argument in arguments)
    num_rows, num_items, rounds = (int(options[name]) for name in ("rows", "items", "rounds"))
    ks = tuple(int(k) for k in options["places"].split(","))
    rng = np.random.default_rng(0)
    task = _task(rng, num_rows, num_items, ks)
    # Scores that prefer popular items, so that rankings repeat titles as a policy's do.
    taste_I = np.log(1 / np.arange(1, num_items + 1))
    scores_BI = (taste_I + rng.gumbel(size=(num_rows, num_items))).astype(np.float32)
    score_lists = scores_BI.tolist()
    print(f"{num_rows} rows, {num_items} items, k = {options['places']}; median of {rounds} rounds\n")
    print("| part | plain Python, ms | here, ms | times as fast |\n|---|---|---|---|")

    lines = []
    plain, plain_s = _timed(rounds, lambda: _plain(task))
    fresh = [EvaluationTask(**vars(task)) for _ in range(rounds)]
    _, ours_s = _timed(rounds, lambda: fresh.pop().unranked)
    lines.append(("preparation, once for all policies", plain_s, ours_s))
    assert task.unranked.catalog is not None

    listed, plain_s = _timed(1, lambda: rank_by_sorting(score_lists, max(ks)))
    ranked_BK, ours_s = _timed(rounds, lambda: rank_scores(scores_BI, max(ks)))
    assert ranked_BK.tolist() == listed
    ranking = (plain_s, ours_s)
    lines.append((f"{max(ks)} best of every row by {num_items} scores", *ranking))

    names = [[task.catalog.titles[item] for item in row] for row in listed]
    found, plain_s = _timed(rounds, lambda: [plain.evaluate(names, task.targets, k) for k in ks])
    measured, ours_s = _timed(rounds, lambda: compute_metrics(recommendations(ranked_BK, task), ks))
    for k, values in zip(ks, found, strict=True):
        for name, value in values.items():
            if (name, k) != ("ild", 1):
                assert math.isclose(measured[f"{name}@{k}"], value, rel_tol=1e-9, abs_tol=1e-12), (name, k)
    assert {name.split("@")[0] for name in measured} == set(METRICS) == set(found[0])
    lines.append(("all metrics of these rankings", plain_s, ours_s))
    lines.append(("scores to metrics", plain_s + ranking[0], ours_s + ranking[1]))
    _, titles_s = _timed(rounds, lambda: compute_metrics(recommendations(rank_lists(names, task).ranked_BK, task), ks))
    lines.append(("all metrics of rankings given as titles", plain_s, titles_s))
    for part, before, after in lines:
        print(f"| {part} | {1000 * before:.1f} | {1000 * after:.2f} | {before / after:.0f} |")

    _print_each(task, ranked_BK, max(ks), rounds)
    _print_significance(task, ranked_BK, rng, ks)


def _task(rng: np.random.Generator, num_rows: int, num_items: int, ks: tuple[int, ...]) -> EvaluationTask:
    words = [f"word{index}" for index in range(5000)]
    chance = 1 / np.arange(1, len(words) + 1)
    drawn = rng.choice(len(words), (num_items, 4), p=chance / chance.sum())
    titles = tuple(f"{' '.join(words[w] for w in row[: 1 + i % 4])} {i}" for i, row in enumerate(drawn))
    genres = {
        title: tuple(f"genre {g}" for g in sorted(set(rng.integers(0, NUM_GENRES, 3).tolist()))) for title in titles
    }
    popular = 1 / np.arange(1, num_items + 1)
    popular /= popular.sum()
    events = rng.multinomial(100_000, popular)
    chosen = rng.choice(num_items, (num_rows, HISTORY + 1), p=popular)
    return EvaluationTask(
        targets=[titles[item] for item in chosen[:, 0]],
        histories=[[titles[item] for item in row[1:]] for row in chosen],
        catalog=Catalog(titles=titles, genres=genres),
        kept_genres=tuple(f"genre {g}" for g in range(NUM_KEPT)),
        popularity=dict(zip(titles, events.tolist(), strict=True)),
        ks=ks,
    )


def _plain(task: EvaluationTask) -> PlainEvaluation:
    return PlainEvaluation(task.catalog.titles, task.catalog.genres, task.kept_genres, task.popularity, task.histories)


def _timed(rounds: int, run: Callable[[], Any]) -> tuple[Any, float]:
    """The last result and the median seconds."""
    spent, result = [], None
    for _ in range(rounds):
        start = time.perf_counter()
        result = run()
        spent.append(time.perf_counter() - start)
    return result, statistics.median(spent)


def _print_each(task: EvaluationTask, ranked_BK: Any, k: int, rounds: int) -> None:
    def measure(metric: Metric) -> float:
        return metric(recommendations(ranked_BK, task), k)  # made anew, so that nothing is shared

    spent = {name: _timed(5 * rounds, partial(measure, metric))[1] for name, metric in METRICS.items()}
    print(f"\nEach at k = {k}, ms: " + ", ".join(f"`{name}` {1000 * s:.2f}" for name, s in spent.items()))


def _print_significance(task: EvaluationTask, ranked_BK: Any, rng: np.random.Generator, ks: Sequence[int]) -> None:
    first, second = (recommendations(ranked, task) for ranked in (ranked_BK, rng.permuted(ranked_BK, axis=1)))
    compared = {name: metric for name, metric in METRICS.items() if name != "hr_se"}
    for k in ks:
        _, spent_s = _timed(1, partial(paired_bootstraps, first, second, compared, k))
        print(f"\nSignificance of {len(compared)} metrics at k = {k}, {NUM_RESAMPLES} resamples: {spent_s:.2f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
