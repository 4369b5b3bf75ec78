"""A comparison of made numbers: a language model's methods, two collaborative models and a failed run."""

from __future__ import annotations

from typing import Any

from sprec_ray.reports.compare.results import CompareData, Cost, Kind, MethodRecord, RunRecord, Significance
from sprec_ray.types import EvalResult

KEYS = ("div_ratio@1", "div_ratio@5", "or_ratio@1", "or_ratio@5", "mgu@1", "mgu@5", "hr@5", "ndcg@5")
MEANS = {
    "popularity": (0.001, 0.001, 1.0, 0.6, 0.10, 0.02, 0.020, 0.014),
    "sasrec": (0.003, 0.002, 0.9, 0.5, 0.05, 0.03, 0.018, 0.012),
    "bigrec": (0.142, 0.100, 0.317, 0.117, 0.018, 0.016, 0.031, 0.024),
    "s_dpo": (0.158, 0.115, 0.327, 0.123, 0.016, 0.015, 0.042, 0.032),
    "sprec": (0.209, 0.147, 0.217, 0.068, 0.010, 0.017, 0.033, 0.025),
}


def result(label: str, values: tuple[float, ...], shift: float = 0.0, **more: Any) -> EvalResult:
    """Metrics of the table, each moved by ``shift``."""
    metrics = {key: value + shift for key, value in zip(KEYS, values, strict=True)}
    return EvalResult(label=label, metrics={**metrics, "valid": 0.98}, counts={"num_rows": 100}, **more)


def run(method: str, seed: int, values: tuple[float, ...], num_iterations: int = 0, **more: Any) -> RunRecord:
    """A finished run whose last policy has these values, moved by a thousandth per seed."""
    labels = ["collaborative"] if method in ("sasrec", "popularity") else ["sft"]
    labels += [f"iteration-{index}" for index in range(num_iterations)]
    gaps = {"Romance": 0.02 + 0.001 * seed, "<Fantasy & more>": -0.01}
    policies = [
        result(label, values, 0.001 * seed - 0.002 * (len(labels) - 1 - place), genre_gaps=gaps)
        for place, label in enumerate(labels)
    ]
    references = [
        result("popularity", MEANS["popularity"]),
        result("random", (0.88, 0.57, 0.01, 0.01, 0.01, 0.01, 0.002, 0.001)),
    ]
    return RunRecord(
        name=f"{method}-{seed}",
        method=method,
        seed=seed,
        status="finished",
        results=(*policies, *references),
        command=f"python -m jobs.train_selfplay configs/goodreads.yaml seed={seed}",
        **more,
    )


def method(label: str, kind: Kind = "language model", **more: Any) -> MethodRecord:
    """A method that sets one thing."""
    return MethodRecord(label=label, name=label, kind=kind, settings={"selfplay.num_iterations": (3, 0)}, **more)


def comparison(**more: Any) -> CompareData:
    """Five methods with two seeds; the second run of s_dpo has failed."""
    methods = (
        method("popularity", "simple"),
        method("sasrec", "collaborative"),
        method("bigrec", about="BIGRec: supervised fine-tuning alone."),
        method("s_dpo"),
        method("sprec", variant_settings={"preference.reference": ("pre_sft", "post_sft")}),
    )
    runs = [
        run(
            each.label,
            seed,
            MEANS[each.label],
            num_iterations={"s_dpo": 1, "sprec": 3}.get(each.label, 0),
            spent=Cost(cpu_s=100.0, trained_tokens=1000, decoded_tokens=50),
            alone=Cost(cpu_s=400.0 if each.label == "sprec" else 200.0, trained_tokens=4000, decoded_tokens=90),
            shared={"sft": f"bigrec-{seed}"} if each.label in ("s_dpo", "sprec") else {},
        )
        for each in methods
        for seed in (0, 1)
    ]
    failed = RunRecord(name="s_dpo-1", method="s_dpo", seed=1, status="failed", error="ValueError: <b>no</b> genres")
    runs = [failed if each.name == "s_dpo-1" else each for each in runs]
    given: dict[str, Any] = {
        "name": "compare-<goodreads>",
        "dataset": "configs/goodreads.yaml",
        "seeds": (0, 1),
        "methods": methods,
        "runs": tuple(runs),
        "significance": (
            Significance(
                method="sprec", rival="bigrec", metric="div_ratio@1", difference=0.067, low=0.04, high=0.09, p=0.001
            ),
            Significance(
                method="sprec", rival="bigrec", metric="or_ratio@1", difference=-0.1, low=-0.12, high=-0.08, p=0.001
            ),
            Significance(
                method="sprec", rival="bigrec", metric="ndcg@5", difference=0.001, low=-0.01, high=0.012, p=0.8
            ),
            Significance(
                method="s_dpo", rival="sprec", metric="ndcg@5", difference=0.007, low=0.001, high=0.013, p=0.03
            ),
        ),
        "num_resamples": 2000,
        "published": "goodreads",
        "from_paper": (
            ("model.name_or_path", "scratch", "meta-llama/Llama-3.2-1B-Instruct"),
            ("data.template", "short", "alpaca"),
        ),
        "pretraining": Cost(cpu_s=50.0),
        "notes": ("bigrec keeps selfplay.num_iterations=0",),
        "command": "python -m jobs.compare configs/goodreads.yaml methods=[bigrec,sprec]",
        "started": "2026-01-01 10:00",
        "total_s": 3600.0,
        "versions": {"python": "3.11"},
    }
    return CompareData(**{**given, **more})
