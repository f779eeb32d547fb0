"""The first answer of the explorer: what was found, as plain HTML, before any script has run."""

from __future__ import annotations

from html import escape

from probe.dashboard.application.address import RUN, write_address
from probe.dashboard.application.opened import Opened
from probe.dashboard.application.plain_html import plain_html
from probe.dashboard.overview import overview
from probe.visible import visible


def first_paint(opened: Opened, name: str) -> str:
    """Return the element that the application is drawn in, with a run's findings in it until then.

    They are those of the page *Overview*, made by that page: the same order, the same words.
    """
    page = overview(opened)
    view, items = page.shown(write_address({RUN.name: name}, page.controls))
    title = escape(visible(view.get(RUN.name) or "probe"))
    return (
        '<div id="react-entry-point"><div class="explorer-first"><header class="explorer-header">'
        f'<span class="explorer-brand">probe</span><span class="explorer-run">{title}</span></header>'
        '<div class="explorer-page"><aside class="explorer-side"></aside><main class="explorer-main explorer-scrolls">'
        f'<h1 class="explorer-title">{escape(page.title)}</h1><div class="explorer-content">{plain_html(items)}</div>'
        "</main></div></div></div>"
    )
