"""Docstrings, signatures and tables as Markdown."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

from .members import field_meanings

Table = Sequence[Sequence[str]]


def prose(docstring: str | None) -> str:
    """Return a docstring as Markdown: what is no code and looks like HTML stays text."""
    parts = re.split(r"(`[^`]*`)", inspect.cleandoc(docstring or ""))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def first_sentence(docstring: str | None) -> str:
    """Return the first paragraph's first sentence."""
    paragraph = " ".join(prose(docstring).split("\n\n")[0].split())
    end = re.search(r"(?<!e\.g)(?<!i\.e)(?<! al)[.:](?=\s|$)", paragraph)
    return (paragraph[: end.end()] if end else paragraph).replace(":", ".", 1) if end else paragraph


def capital(text: str) -> str:
    """Return a text with its first letter large."""
    return text[:1].upper() + text[1:]


def cell(text: str) -> str:
    """Return text for one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table, or nothing where it has no rows."""
    body = ["| " + " | ".join(map(cell, row)) + " |" for row in rows]
    if not body:
        return ""
    return "\n".join(["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |", *body])


def code(value: Any) -> str:
    """Return a value as code."""
    return f"`{value}`"


def fields_table(kind: type) -> str:
    """Return a dataclass' fields with type, default and what stands under each."""
    meanings, own = field_meanings(kind), vars(kind).get("__annotations__", {})
    rows = [
        (code(each.name), code(_annotation(each.type)), _default(each), prose(meanings.get(each.name)))
        # What is this one's own comes before what it shares with others.
        for each in sorted(dataclasses.fields(kind), key=lambda field: field.name not in own)
        if each.init
    ]
    return table(("field", "type", "default", "what it is"), rows)


def parameters_table(function: Any) -> str:
    """Return the keyword parameters of an analysis with their types and defaults."""
    rows = [
        (code(each.name), code(_annotation(each.annotation)), code(repr(each.default)))
        for each in inspect.signature(function).parameters.values()
        if each.kind is each.KEYWORD_ONLY
    ]
    return table(("parameter", "type", "default"), rows)


def _annotation(value: Any) -> str:
    return value if isinstance(value, str) else inspect.formatannotation(value)


def _default(field: Any) -> str:
    if field.default is not dataclasses.MISSING:
        return code(repr(field.default))
    if field.default_factory is not dataclasses.MISSING:
        return code(repr(field.default_factory()))
    return "must be given"


def signature(value: Any) -> str:
    """Return a callable's signature as it is written, on one line."""
    try:
        found = inspect.signature(value)
    except ValueError:
        return ""
    shown = []
    for each in found.parameters.values():
        if each.name in ("self", "cls"):
            continue
        # What a default of a thousand words would say stands in the table of fields.
        plain = each.default is not each.empty and len(repr(each.default)) > 60
        shown.append(each.replace(default=...) if plain else each)
    text = str(found.replace(parameters=shown))
    # Annotations are strings in these sources: they are shown as they were written.
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)
    text = re.sub(r'(: |-> )"([^"]*)"', r"\1\2", text)
    return re.sub(r"<factory>", "...", text).replace("Ellipsis", "...").removesuffix(" -> None")


def described(kind: str, name: str, value: Any, *, body: str | None = None, qualified: str = "") -> str:
    """Return a function, class or method as an entry of the reference, findable in the index and by search."""
    said = prose(value.__doc__ if body is None else body)
    shown = "" if kind == "exception" else signature(value)
    return f":::{{py:{kind}}} {qualified or 'probe.'}{name}{shown}\n\n{said}\n:::"
