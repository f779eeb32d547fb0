"""The reference of what `import probe` gives."""

from __future__ import annotations

import inspect
from typing import Any

from . import members
from .member_pages import joined
from .wording import described, first_sentence, prose, table

FIRST = ("load", "trace", "open", "run", "Trace", "Run", "Sample", "Span", "Finding", "Interval")
"""What is told first, in this order; the others follow as they are called."""
ROOMS = ("analyses", "interventions", "workloads")


def api() -> str:
    """Return the page; each member of a room is described on its own page, and listed here."""
    import probe

    of_rooms = {name for room in ROOMS for name in members.names(room)}
    names = [*FIRST, *sorted({*probe._public()} - {*FIRST} - of_rooms)]
    found = {name: getattr(probe, name) for name in names}
    classes = {name: each for name, each in found.items() if isinstance(each, type)}
    return joined(
        "# API reference",
        "What `import probe` gives. Names arrive when they are first used, so that reading a trace needs no torch.",
        "## Functions",
        *(described("function", name, each) for name, each in found.items() if name not in classes),
        "## What they return and take",
        *(_class(name, each) for name, each in classes.items() if not issubclass(each, BaseException)),
        "## Errors",
        *(_errors()),
        "## Analyses, interventions, workloads",
        *(_listed(room) for room in ROOMS),
    )


def _class(name: str, kind: type) -> str:
    from .wording import signature

    inside = [_method(name, key, value) for key, value in _own(kind)]
    shown = "" if name == "Finding" else signature(kind)
    fields = _fields(kind)
    body = joined(prose(kind.__doc__), fields, *inside).rstrip()
    # A directive inside another needs a longer fence around it.
    return f"::::{{py:class}} probe.{name}{shown}\n\n{body}\n::::"


def _fields(kind: type) -> str:
    from pydantic import BaseModel

    if issubclass(kind, BaseModel):
        rows = [(f"`{key}`", prose(each.description)) for key, each in kind.model_fields.items()]
        meanings = members.field_meanings(kind)
        rows = [(key, said or prose(meanings.get(key.strip("`")))) for key, said in rows]
    else:
        rows = [(f"`{key}`", prose(said)) for key, said in members.field_meanings(kind).items()]
    return table(("field", "what it is"), rows)


def _own(kind: type) -> list[tuple[str, Any]]:
    found = []
    for key, value in vars(kind).items():
        plain = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if not key.startswith("_") and (inspect.isfunction(plain) or _property(plain)) and _said(plain):
            found.append((key, plain))
    return found


def _property(value: Any) -> bool:
    return isinstance(value, property) or type(value).__name__ == "cached_property"


def _said(value: Any) -> str | None:
    return value.__doc__ or getattr(getattr(value, "func", None), "__doc__", None)


def _method(name: str, key: str, value: Any) -> str:
    if _property(value):
        return f":::{{py:property}} {key}\n\n{prose(_said(value))}\n:::"
    return described("method", key, value, qualified=f"probe.{name}.")


def _errors() -> list[str]:
    from probe import errors

    found = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.ProbeError)]
    where = {"ProbeError": "probe."}
    return [
        described("exception", each.__name__, each, qualified=where.get(each.__name__, "probe.errors."))
        for each in found
    ]


def _listed(room: str) -> str:
    rows = [
        (f"[`probe.{name}`]({room}/{name}.md)", first_sentence(members.member(room, name).__doc__))
        for name in members.names(room)
    ]
    return joined(f"### {room.capitalize()}", table(("name", "what it does"), rows)).rstrip()
