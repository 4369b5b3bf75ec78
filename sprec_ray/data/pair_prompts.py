"""The renderer of prompts and answers about titles that the prompt itself names (DMPO, TALLRec)."""

from __future__ import annotations

from collections.abc import Sequence

from sprec_ray.data.prompts import NOUNS

_FRAME = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
# The wording of the published rows of arXiv 2405.16127, and of arXiv 2305.00447.
_RANK = (
    "You are an assistant working on {item} recommendations. Here is the user's history of {items} they have watched: "
    "{history}. Rank the likelihood of the user watching the two {items} {candidates}."
)
_JUDGE = (
    'Given the user\'s preference, identify whether the user will like the target {item} by answering "Yes." or '
    '"No.".\nUser preference: {history}\nWhether the user will like the target {item} {candidates}?'
)
PAIR_TEMPLATES = {
    ("alpaca", 2): _FRAME.format(instruction=_RANK),
    ("alpaca", 1): _FRAME.format(instruction=_JUDGE),
    ("short", 2): "Liked:\n{history}\nWhich {item} first, {candidates}?\n",
    ("short", 1): "Liked:\n{history}\nAlso {candidates}?\n",
}
"""By ``data.template`` and the number of titles that are asked about."""


def render_judgement_prompt(history: Sequence[str], candidates: Sequence[str], *, template: str, noun: str) -> str:
    r"""The prompt that asks to rank two titles, or to say Yes. or No. to one.

    >>> render_judgement_prompt(["Dune"], ["Emma", "It"], template="short", noun="book")
    'Liked:\n"Dune"\nWhich book first, "Emma" or "It"?\n'
    """
    named = " and " if template == "alpaca" else " or "
    return PAIR_TEMPLATES[template, len(candidates)].format(
        item=noun,
        items=NOUNS[noun],
        history=", ".join(_quoted(title, template) for title in history),
        candidates=named.join(_quoted(title, template) for title in candidates),
    )


def render_judgement(answer: Sequence[str], *, template: str) -> str:
    r"""The response: both titles, best first, or the one word. The end-of-sequence token follows it.

    >>> render_judgement(["It", "Emma"], template="short"), render_judgement(["Yes."], template="short")
    ('"It", "Emma"\n', 'Yes.\n')
    """
    return (answer[0] if len(answer) == 1 else ", ".join(_quoted(title, template) for title in answer)) + "\n"


def _quoted(title: str, template: str) -> str:
    return f"<Title:{title}>" if template == "alpaca" else f'"{title}"'
