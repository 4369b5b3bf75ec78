"""The few HTML builders of the report: escaping, tables and sections. Everything they return is well-formed XML."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence

_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
MAX_TITLE_CHARS = 70


def escape(value: object) -> str:
    """Text that is safe inside an element or a double-quoted attribute; characters XML forbids become U+FFFD."""
    return html.escape(_NOT_XML.sub("\ufffd", str(value)), quote=True)


def title_text(title: str) -> str:
    """A catalogue title as HTML: isolated from the direction of the text around it, cut when it is very long."""
    shown = title if len(title) <= MAX_TITLE_CHARS else title[: MAX_TITLE_CHARS - 1] + "…"
    return f'<bdi title="{escape(title)}">{escape(shown)}</bdi>'


def cut(label: str, most: int) -> str:
    """A label of at most ``most`` characters."""
    return label if len(label) <= most else label[: most - 1] + "…"


def number(value: float | None, digits: int = 4) -> str:
    """A number for a table: ``n/a`` where it is undefined, a dash where it was not measured."""
    if value is None:
        return "–"
    return "n/a" if math.isnan(value) else f"{value:.{digits}f}"


def value_text(value: float) -> str:
    """A metric where space is short: four decimals, two from 10 on, ``n/a`` where it is undefined."""
    return number(value, 4 if not abs(value) >= 10 else 2)


def seconds(value: float) -> str:
    """A duration for people: ``4.2 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, css: str = "") -> str:
    """A table of cells that are HTML already; the first column is the row's name."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in headers)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table class="{css}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def page(title: str, style: str, body: str) -> str:
    """A whole self-contained page; it is well-formed XML after its first line."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>{body}</main></body></html>\n"
    )


def header(title: str, command: str, facts: Iterable[tuple[str, object]]) -> str:
    """The page's title, the command that made it, and facts by name; empty facts are left out."""
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts if str(v))
    shown = f"<pre><code>{escape(command)}</code></pre>" if command else ""
    return f"<header><h1>{escape(title)}</h1>{shown}<dl>{items or '<div/>'}</dl></header>"


def warnings(found: Iterable[str]) -> str:
    """A box of warnings, or nothing without any."""
    items = "".join(f"<li>{escape(text)}</li>" for text in found)
    return f'<aside class="warning"><h2>Warnings</h2><ul>{items}</ul></aside>' if items else ""


def section(name: str, heading: str, *parts: str) -> str:
    """A section of the page, or nothing when all its parts are empty."""
    content = "".join(parts)
    return f'<section id="{name}"><h2>{escape(heading)}</h2>{content}</section>' if content else ""


def note(text: str) -> str:
    """A line of explanation under a heading."""
    return f'<p class="note">{escape(text)}</p>'


def mapping_table(headers: tuple[str, str], values: Iterable[tuple[str, object]], *, css: str = "") -> str:
    """A two-column table of plain values, escaped."""
    rows = [[escape(key), escape(value)] for key, value in values]
    return table([escape(header) for header in headers], rows, css=css) if rows else ""
