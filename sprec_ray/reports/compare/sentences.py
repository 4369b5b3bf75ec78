"""What a comparison says in words: what failed, what does not beat a simple rule, how it agrees with the paper."""

from __future__ import annotations

import math
from collections.abc import Iterator

from sprec_ray.reports.compare.published import kendall_tau, published_table
from sprec_ray.reports.compare.results import DIGITS, CompareData, spread
from sprec_ray.reports.compare.tables import accuracy_key
from sprec_ray.reports.markup import value_text
from sprec_ray.reports.tables import column_of

SIMPLE = {
    "popularity": "going by how popular titles are",
    "random": "guessing",
    "liked share": "the share of a title's training judges who like it",
    "last_item": "looking up what followed the last title in training",
}


def compare_warnings(data: CompareData) -> list[str]:
    """What a reader must know before the numbers."""
    found = [f"{run.name} failed: {run.error or 'no message was kept'}" for run in data.runs if run.status == "failed"]
    unfinished: dict[str, list[str]] = {}
    for run in data.runs:
        if run.status == "unfinished":
            unfinished.setdefault(run.method, []).append(str(run.seed))
    if unfinished:
        listed = ", ".join(f"{method} (seed {', '.join(seeds)})" for method, seeds in unfinished.items())
        found.append(f"Not finished: {listed}. The command above continues the comparison.")
    return [*found, *data.notes, *grounding_sentences(data), *simple_sentences(data)]


def grounding_sentences(data: CompareData) -> Iterator[str]:
    """A sentence for every method whose answers become titles in another way than the others'."""
    for method in data.shown_methods:
        others, own = method.settings.get("evaluation.grounding", (None, None))
        if own != others:
            yield (
                f"{method.label} has evaluation.grounding={own}, the methods without a setting of their own {others}: "
                "what they differ in is the grounding's too."
            )


def simple_sentences(data: CompareData) -> Iterator[str]:
    """A sentence for every method that learned and is no more accurate than a rule that did not."""
    key = accuracy_key(data)
    if key is None:
        return
    rules = {label: [result.metrics[key] for result in found] for label, found in data.references().items()}
    own = {method.name: data.values(method.label, key) for method in data.table_methods if method.kind == "simple"}
    rules |= {name: values for name, values in own.items() if values}
    title = column_of(key).title
    for method in data.table_methods:
        mean = spread(data.values(method.label, key))[0]
        if method.kind == "simple" or math.isnan(mean):
            continue
        bounds = {rule: spread(values)[0] for rule, values in rules.items()}
        unbeaten = sorted((rule for rule in bounds if mean <= bounds[rule]), key=lambda rule: -bounds[rule])
        if unbeaten:
            against = ", ".join(value_text(bounds[rule]) for rule in unbeaten)
            yield (
                f"{method.label} does not beat {', '.join(unbeaten)}: {title} {value_text(mean)} against {against}. On "
                f"these rows {SIMPLE.get(unbeaten[0], unbeaten[0])} is at least as accurate."
            )


def agreeing_signs(data: CompareData, key: str) -> tuple[int, int]:
    """For how many methods the sign of the difference from the baseline is the published one, of those with both."""
    pairs = [(ours, theirs) for _, ours, theirs in differences(data, key) if ours and theirs]
    return sum(ours * theirs > 0 for ours, theirs in pairs), len(pairs)


def differences(data: CompareData, key: str) -> list[tuple[str, float, float]]:
    """(label, our difference from the baseline, the published one) for every other published method that was run."""
    if not data.published:
        return []
    published = published_table(data.published)
    theirs, baseline = published.numbers, published.baseline
    base = spread(data.values(baseline, key))[0]
    pairs = [(method, spread(data.values(method.label, key))[0]) for method in data.table_methods]
    return [
        (method.label, round(mean - base, DIGITS), round(theirs[method.name][key] - theirs[baseline][key], DIGITS))
        for method, mean in pairs
        if method.label != baseline and method.name in theirs and not math.isnan(mean - base + theirs[method.name][key])
    ]


def ordering(data: CompareData, key: str) -> float:
    """Kendall's tau of our means and the published numbers over the methods that are in both; NaN for fewer than two.

    Methods that the paper shows for reference are left out.
    """
    if not data.published:
        return math.nan
    published, means = published_table(data.published), _means(data, key)
    theirs = {name: numbers[key] for name, numbers in published.numbers.items() if name not in published.unordered}
    names = [name for name in means if not math.isnan(theirs.get(name, math.nan))]
    return kendall_tau([means[name] for name in names], [theirs[name] for name in names])


def agreement_sentences(data: CompareData) -> list[str]:
    """Which metrics order the methods as the paper does, and which do not."""
    found: list[str] = []
    if not data.published:
        return found
    published = published_table(data.published)
    for key in published.columns:
        tau = ordering(data, key)
        if math.isnan(tau):
            continue
        same, total = agreeing_signs(data, key)
        signs = (
            f"{same} of {total} methods differ from {published.baseline} in the published direction, " if total else ""
        )
        found.append(f"{column_of(key).title}: {signs}Kendall's tau {tau:+.2f}.")
    return found


def _means(data: CompareData, key: str) -> dict[str, float]:
    """By name the mean of every method that was run, the paper's variant where both were."""
    found: dict[str, float] = {}
    for method in sorted(data.table_methods, key=lambda method: method.variant == "reference"):
        mean = spread(data.values(method.label, key))[0]
        if not math.isnan(mean):
            found.setdefault(method.name, mean)
    return found
