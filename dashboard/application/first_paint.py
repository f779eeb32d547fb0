"""The first answer of the explorer: what was found, as plain HTML, before any script has run."""

from __future__ import annotations

from html import escape

from probe.dashboard.application.opened import Opened
from probe.errors import ProbeError
from probe.telling.certainty import certainty
from probe.telling.headline import ranked
from probe.visible import visible


def first_paint(opened: Opened, name: str) -> str:
    """Return the element that the application is drawn in, with a run's findings in it until then."""
    try:
        run = opened.run(name)
        cards = "".join(
            f'<article class="explorer-card explorer-{finding.verdict}">'
            f"<h2>{_text(finding.headline or finding.question)}</h2>"
            f"<p>{_text(finding.claim)}</p><p class='explorer-notes'>{_text(finding.verdict)} · "
            f"{_text(certainty(finding, brief=True))}</p></article>"
            for finding in ranked(run.findings())
        )
        said = cards or '<p class="explorer-notes">Nothing was found yet.</p>'
        title = _text(run.name)
    except ProbeError as error:
        said, title = f"<p>{_text(str(error))}</p>", "probe"
    return (
        '<div id="react-entry-point"><div class="explorer-first"><header class="explorer-header">'
        f'<span class="explorer-brand">probe</span><span class="explorer-run">{title}</span></header>'
        f'<main class="explorer-cards">{said}</main></div></div>'
    )


def _text(text: str) -> str:
    return escape(visible(text))
