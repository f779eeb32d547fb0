"""What is looked at, as the address says it: so that a reload, a link and the back button show the same."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from probe.errors import UsageError

Range = tuple[int, int]
"""Half-open range of positions."""

WHICH: Final = ("mean", "max")
"""What a cell of many tokens shows."""

SCALES: Final = ("log", "linear")

_RANGE: Final = re.compile(r"([0-9]{1,10})-([0-9]{1,10})")


@dataclass(frozen=True)
class View:
    """One picture of one head's attention."""

    unit: str = ""
    """Id of the unit; empty for the first."""
    layer: int | None = None
    """Layer; None for the first of which there is something to see."""
    head: int = 0
    """Query head."""
    which: str = "mean"
    """`mean`: of a cell's queries, what goes to its keys; `max`: the largest probability in it."""
    cell_tokens: int | None = None
    """Positions along the side of a cell that are wished for; None for the finest that fits."""
    queries: Range | None = None
    """Positions of the queries shown; None for all."""
    keys: Range | None = None
    """Positions of the keys shown; None for all."""
    scale: str = "log"
    """How colours follow probability: `log` or `linear`."""
    sink: bool = True
    """Whether the first keys are shown."""
    run: str = ""
    """Name of the run; empty for the first."""

    def to_query(self) -> str:
        """Return the view as a query string, `?…`; what is as by default is left out."""
        ranges = {name: getattr(self, name) for name in ("queries", "keys")}
        parts: dict[str, Any] = {
            "run": self.run or None,
            "unit": self.unit or None,
            "layer": self.layer,
            "head": self.head or None,
            "which": None if self.which == "mean" else self.which,
            "cell": self.cell_tokens,
            **{name: None if value is None else f"{value[0]}-{value[1]}" for name, value in ranges.items()},
            "scale": None if self.scale == "log" else self.scale,
            "sink": None if self.sink else "off",
        }
        text = urlencode({name: value for name, value in parts.items() if value is not None})
        return f"?{text}" if text else ""

    @classmethod
    def from_query(cls, text: str | None) -> View:
        """Read what `to_query` gave; raises UsageError naming the part of the address that says nothing such."""
        parts = dict(parse_qsl((text or "").removeprefix("?"), keep_blank_values=True, max_num_fields=32))
        known = {"run", "unit", "layer", "head", "which", "cell", "queries", "keys", "scale", "sink"}
        if unknown := sorted(set(parts) - known):
            raise UsageError(f"the address has {unknown[0]!r}, which means nothing here")
        found: dict[str, Any] = {}
        for name, field in {"layer": "layer", "head": "head", "cell": "cell_tokens"}.items():
            if name in parts:
                found[field] = _number(name, parts[name])
        for name in ("queries", "keys"):
            if name in parts:
                found[name] = _range(name, parts[name])
        for name, words in {"which": WHICH, "scale": SCALES, "sink": ("on", "off")}.items():
            if name in parts and parts[name] not in words:
                raise UsageError(f"the address says {name}={parts[name]!r}; it is {' or '.join(words)}")
        found |= {name: parts[name] for name in ("run", "unit", "which", "scale") if name in parts}
        return cls(**found, sink=parts.get("sink", "on") == "on")


def zoomed(shown: Range, at: float, factor: float, extent: int, least: int = 16) -> Range:
    """Return a range around a position, `factor` times as wide as what is shown, inside of the prompt."""
    size = max(min(least, extent), min(extent, round((shown[1] - shown[0]) * factor)))
    start = min(max(0, round(at - size / 2)), extent - size)
    return start, start + size


def _number(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text):
        raise UsageError(f"the address says {name}={text!r}; it is a whole number")
    return int(text)


def _range(name: str, text: str) -> Range:
    match = _RANGE.fullmatch(text)
    if match is None or int(match[1]) >= int(match[2]):
        raise UsageError(f"the address says {name}={text!r}; it is a range of positions such as 0-512")
    return int(match[1]), int(match[2])
