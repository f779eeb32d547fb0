"""Where the tokens stand: a list that the browser fills with those in view, and what leads about in it."""

from __future__ import annotations

from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html


def reader() -> Any:
    """Return the empty frame; `assets/text.js` fills it and obeys its buttons."""
    bar = html.Div(
        [
            dmc.TextInput(
                id="text-position",
                placeholder="Position",
                inputProps={"inputMode": "numeric", "aria-label": "Position"},
                size="xs",
            ),
            _button("text-go", "Go", "Go to the position"),
            html.Label(["Span ", html.Select(id="text-spans", className="reader-spans")]),
            _button("text-previous", "◂", "Previous place found"),
            html.Span("", id="text-hits", role="status"),
            _button("text-next", "▸", "Next place found"),
            html.Span("", id="text-where", className="explorer-notes reader-where"),
        ],
        className="reader-bar",
        role="toolbar",
        **{"aria-label": "Move in the text"},
    )
    tokens = html.Div(
        id="text-tokens",
        className="reader-tokens",
        tabIndex="0",
        role="listbox",
        **{"aria-label": "Tokens: left and right choose the query, Home and End go to the ends"},
    )
    told = html.Aside(
        id="text-reading", className="explorer-reading reader-reading", **{"aria-label": "The token pointed at"}
    )
    return html.Div(
        [
            dcc.Store(id="text-shown"),
            bar,
            html.P("", id="text-problem", className="explorer-notes", role="alert"),
            html.Div([tokens, told], className="reader-body"),
        ],
        className="reader",
    )


def _button(name: str, label: str, says: str) -> Any:
    return html.Button(label, id=name, type="button", className="explorer-button", **{"aria-label": says})
