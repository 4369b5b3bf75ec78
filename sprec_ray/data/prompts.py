"""The renderer of next-item prompts: history to prompt, title to response, and a response back to its title."""

from __future__ import annotations

from collections.abc import Sequence

TEMPLATE = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nGiven a list of {items} the user recently enjoyed, please recommend a new {item} "
    "that the user may like.\n\n"
    "### Input:\n{history}\n\n### Response:\n"
)
SHORT_TEMPLATE = "History:\n{history}\nNext {item}:\n"
"""For small models trained from scratch, to which the wording of an instruction says nothing."""

CANDIDATES_TEMPLATE = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nGiven a list of {items} the user recently enjoyed, please choose from the candidates the {item} "
    "that the user will most likely enjoy next.\n\n"
    "### Input:\n{history}\n\n### Candidates:\n{candidates}\n\n### Response:\n"
)
SHORT_CANDIDATES_TEMPLATE = "History:\n{history}\nCandidates:\n{candidates}\nNext {item}:\n"
"""S-DPO and LLaRA draw one of several wordings for every row; here a run has one, which says the same."""

TEMPLATES = {"alpaca": TEMPLATE, "short": SHORT_TEMPLATE}
CANDIDATES_TEMPLATES = {"alpaca": CANDIDATES_TEMPLATE, "short": SHORT_CANDIDATES_TEMPLATE}
NOUNS = {"book": "books", "movie": "movies", "game": "games", "album": "albums", "artist": "artists", "item": "items"}


def render_prompt(history: Sequence[str], *, template: str, noun: str, candidates: Sequence[str] = ()) -> str:
    r"""The text given to the model for a history, oldest title first, and the candidates to choose from, if any.

    >>> render_prompt(["Dune", 'A Child Called "It"'], template="short", noun="book")
    'History:\n"Dune", "A Child Called "It""\nNext book:\n'
    """
    wording = CANDIDATES_TEMPLATES[template] if candidates else TEMPLATES[template]
    return wording.format(items=NOUNS[noun], item=noun, history=_quoted(history), candidates=_quoted(candidates))


def _quoted(titles: Sequence[str]) -> str:
    return ", ".join(f'"{title}"' for title in titles)


def render_response(title: str) -> str:
    r"""The text expected from the model for a title; the end-of-sequence token follows it.

    >>> render_response("Dune")
    '"Dune"\n'
    """
    return f'"{title}"\n'


def parse_response(text: str) -> str | None:
    r"""The title a response names, or None when the response is not a quoted title.

    Only the first line counts, and only its outer quotes are removed, so that titles with quotes inside survive:
    ``parse_response(render_response(title)) == title`` for every title without a line feed.

    >>> parse_response('"A Child Called "It""\nmore text')
    'A Child Called "It"'
    >>> parse_response("Dune") is None
    True
    """
    line = text.split("\n", 1)[0]
    if len(line) < 3 or not line.startswith('"') or not line.endswith('"'):
        return None
    return line[1:-1]
