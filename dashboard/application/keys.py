"""The keys: what each does, in one list that the dialog shows and the browser obeys."""

from __future__ import annotations

from typing import Any, Final

from dash import html

KEYS: Final = (
    ("?", "this list"),
    ("1 … 9, 0", "the pages, in their order"),
    ("j, k", "next and previous head"),
    ("J, K", "next and previous layer"),
    ("n, p", "next and previous sample or condition"),
    ("r, R", "next and previous run"),
    ("c, C", "next and previous condition"),
    ("/", "find in the text"),
    ("← →", "in the text: the token before and after, as the query"),
    ("Home, End", "in the text: its first and last token"),
    ("+, −, arrows", "on the attention map: zoom, move"),
    ("Home", "on the attention map: the whole prompt"),
    ("d", "dark or light"),
    ("Esc", "close a dialog, leave a field"),
)
"""Key and what it does. `assets/keys.js` does it."""


def keys_dialog() -> Any:
    """Return the dialog that `?` opens."""
    rows = [html.Tr([html.Th(html.Kbd(key), scope="row"), html.Td(does)]) for key, does in KEYS]
    return html.Dialog(
        [
            html.H2("Keys", id="keys-title"),
            html.Table(html.Tbody(rows)),
            html.Button("Close", id="keys-close", type="button", className="explorer-button"),
        ],
        id="keys",
        className="explorer-dialog",
        **{"aria-labelledby": "keys-title"},
    )
