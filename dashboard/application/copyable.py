"""Lines that somebody will want elsewhere, with a button that copies them."""

from __future__ import annotations

from typing import Any

from dash import html

from probe.visible import visible


def copyable(lines: str, what: str) -> Any:
    """Return lines as they are, hidden characters made visible, and a button that copies them; `what` they are."""
    return html.Div(
        [
            html.Button("Copy", type="button", className="explorer-copy", **{"aria-label": f"Copy {what}"}),
            html.Pre(visible(lines, keep="\n"), className="explorer-lines", tabIndex="0", **{"aria-label": what}),
        ],
        className="explorer-copyable",
    )
