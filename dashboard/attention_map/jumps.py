"""Links from a map to the spans of its prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from dash import dcc, html

from probe.sample import Span
from probe.visible import visible

MOST_JUMPS: Final = 64
"""Spans that there are links to, at most."""

_ROOM: Final = 4
_NAME: Final = 32


def jumps(spans: Sequence[Span], extent: int, address: Callable[..., str]) -> Any:
    """Return a link to each span as queries and keys, and to it as either alone; None where there are no spans.

    `address` returns where a view with other `queries` and `keys` (`START-STOP`) is shown.
    """
    there = [span for span in spans if len(span) and span.start < extent]
    if not there:
        return None
    links: list[Any] = []
    for span in there[:MOST_JUMPS]:
        # A few tokens around it, or the first and the last of a span would stand at the edge.
        at = f"{max(0, span.start - _ROOM)}-{min(extent, span.stop + _ROOM)}"
        name = visible(span.name if len(span.name) <= _NAME else span.name[: _NAME - 1] + "…")
        said = f"{name}, positions {span.start:,} to {span.stop - 1:,}"
        links.append(
            html.Li(
                [
                    _link(name, address(queries=at, keys=at), f"{said}: as queries and keys"),
                    _link("as query", address(queries=at), f"{said}: as queries"),
                    _link("as key", address(keys=at), f"{said}: as keys"),
                ]
            )
        )
    if len(there) > MOST_JUMPS:
        links.append(html.Li(f"and {len(there) - MOST_JUMPS:,} more"))
    return html.Nav(html.Ul(links), className="attention-jumps", **{"aria-label": "Jump to a span"})


def _link(text: str, href: str, said: str) -> Any:
    return dcc.Link(text, href=href, title=said)
