"""A finding as a card: its answer, its verdict in a word and a sign, how sure it is, and whether it was expected."""

from __future__ import annotations

from typing import Any

from dash import dcc, html

from probe.finding import Verdict
from probe.telling.certainty import certainty
from probe.telling.surprise import Told
from probe.telling.verdicts import MEANINGS, SIGNS
from probe.visible import visible


def card(told: Told, href: str) -> Any:
    """Return the card of a finding; its title opens the evidence at `href`."""
    finding = told.finding
    title = visible(finding.headline or finding.question)
    return html.Article(
        [
            html.Div([html.H2(dcc.Link(title, href=href)), badge(finding.verdict)], className="explorer-card-head"),
            html.P(visible(finding.claim)),
            html.P(visible(certainty(finding, brief=True)), className="explorer-notes"),
            *expectations(told, brief=True),
        ],
        className=f"explorer-card explorer-{finding.verdict}",
    )


def badge(verdict: Verdict) -> Any:
    """Return a verdict as a sign and a word; what it means on hover."""
    return html.Span(
        f"{SIGNS[verdict]} {verdict}", className=f"explorer-badge explorer-{verdict}", title=MEANINGS[verdict]
    )


def expectations(told: Told, *, brief: bool = False) -> list[Any]:
    """Return what the casebook expected of a finding and what was found; `brief` leaves out what was met."""
    if not told.expected:
        return []
    met = [each for each in told.expected if each.get("met")]
    said = [
        html.P(
            visible(f"✗ not as expected: {each.get('expected')}; found: {each.get('found')}"),
            className="explorer-notes explorer-unmet",
        )
        for each in told.expected
        if not each.get("met")
    ]
    if brief:
        count = f" ({len(met)} of {len(told.expected)})" if len(told.expected) > 1 else ""
        return [*said, html.P(f"✓ as expected{count}", className="explorer-notes")] if met else said
    return [
        *said,
        *(
            html.P(
                visible(f"✓ as expected: {each.get('expected')}; found: {each.get('found')}"),
                className="explorer-notes",
            )
            for each in met
        ),
    ]
