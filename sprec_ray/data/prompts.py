"""The only renderer: history to prompt, title to response, and a response back to its title."""

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

TEMPLATES = {"alpaca": TEMPLATE, "short": SHORT_TEMPLATE}
NOUNS = {"book": "books", "movie": "movies", "game": "games", "album": "albums", "item": "items"}


def render_prompt(history: Sequence[str], *, template: str, noun: str) -> str:
    r"""The text given to the model for a history, oldest title first.

    >>> render_prompt(["Dune", 'A Child Called "It"'], template="short", noun="book")
    'History:\n"Dune", "A Child Called "It""\nNext book:\n'
    """
    titles = ", ".join(f'"{title}"' for title in history)
    return TEMPLATES[template].format(items=NOUNS[noun], item=noun, history=titles)


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
