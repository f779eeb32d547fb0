"""What is looked at, as the address says it: a reload, a link and the back button show the same."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import parse_qsl, urlencode

from probe.errors import UsageError

View = Mapping[str, str]
"""The parts of an address by name, those that it leaves out as by default."""

MOST_PARTS: Final = 32

Kind = Literal["select", "choice", "switch", "text", "address"]


@dataclass(frozen=True)
class Control:
    """One part of a view, and with what it is chosen."""

    name: str
    """Its name in the address."""
    label: str = ""
    """What it is called on the page; empty for a part that only the address holds."""
    default: str = ""
    """What it is where the address says nothing of it; empty where the page fills it in."""
    kind: Kind = "select"
    """`select`: one of many, in a list; `choice`: one of a few, side by side; `switch`: `on` or `off`; `text`: typed;
    `address`: set by what is done in a figure."""
    options: tuple[str, ...] = ()
    """What a choice is made of, where that is the same for every run."""
    of: tuple[str, ...] = ()
    """Parts that it depends on: where one of them changes it is left open again."""

    def __post_init__(self) -> None:
        if self.kind == "choice" and self.default not in self.options:
            raise ValueError(f"{self.name}: a choice has options, its default among them")


RUN: Final = Control("run", "Run")
UNIT: Final = Control("unit", "Sample and condition")
LAYER: Final = Control("layer", "Layer")
HEAD: Final = Control("head", "Head")
SHARED: Final = (RUN, UNIT, LAYER, HEAD)
"""Parts that go along from page to page, to those that have them too."""


def read_address(search: str | None, controls: Sequence[Control]) -> dict[str, str]:
    """Return the view that a query string says, defaults filled in.

    Raises UsageError naming the part that means nothing on this page, or is not one of what it can be.
    """
    known = {control.name: control for control in controls}
    try:
        said = parse_qsl((search or "").removeprefix("?"), keep_blank_values=True, max_num_fields=MOST_PARTS)
    except ValueError as error:
        raise UsageError(f"the address has more than {MOST_PARTS} parts") from error
    parts = dict(said)
    if unknown := sorted(set(parts) - set(known)):
        raise UsageError(f"the address has {unknown[0]!r}, which means nothing here; it can have {', '.join(known)}")
    for name, value in parts.items():
        possible = ("on", "off") if known[name].kind == "switch" else known[name].options
        if possible and value not in possible:
            raise UsageError(f"the address says {name}={value!r}; it is {' or '.join(possible)}")
    return {name: parts.get(name, control.default) for name, control in known.items()}


def write_address(view: View, controls: Sequence[Control]) -> str:
    """Return the query string of a view, `?…`; what is as by default is left out."""
    parts = {c.name: view[c.name] for c in controls if view.get(c.name, "") not in ("", c.default)}
    return f"?{urlencode(parts)}" if parts else ""


def number(view: View, name: str) -> int | None:
    """Return a part that is a whole number, None where it is left out; raises UsageError where it is none."""
    text = view.get(name, "")
    if text == "":
        return None
    if not re.fullmatch(r"[0-9]{1,10}", text):
        raise UsageError(f"the address says {name}={text!r}; it is a whole number")
    return int(text)
