"""What a finding rests on: figures, numbers, table, notes, what it suggests, and the units behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dash import dcc, html

from probe.dashboard.application.copyable import copyable
from probe.dashboard.application.opened import OpenedRun
from probe.dashboard.application.panel import Grid, Item, Panel, words
from probe.dashboard.application.unit_links import unit_links
from probe.dashboard.findings.card import badge, expectations
from probe.finding import Finding
from probe.telling.certainty import certainty
from probe.telling.suggested import as_python, as_yaml
from probe.telling.surprise import Told
from probe.telling.verdicts import MEANINGS
from probe.visible import visible


def evidence(run: OpenedRun, told: Told, back: str) -> list[Item]:
    """Return everything behind a finding; `back` is the address of all findings."""
    finding = told.finding
    lines = f"import probe\n\nfinding = probe.open({str(run.path)!r}).findings()[{told.index}]\n"
    return [
        html.P(dcc.Link("← All findings", href=back), className="explorer-notes"),
        html.Div(
            [
                html.Div(
                    [html.H2(visible(finding.headline or finding.question)), badge(finding.verdict)],
                    className="explorer-card-head",
                ),
                html.P(visible(finding.claim), className="explorer-words"),
                words(f"{finding.question} {finding.verdict.capitalize()}: {MEANINGS[finding.verdict]}."),
                words(f"How sure: {certainty(finding)}"),
                *expectations(told),
            ],
            className="explorer-answer",
        ),
        *(Panel(figure, f"{lines}finding.figures[{i}]") for i, figure in enumerate(finding.figures)),
        *_tables(finding, lines),
        *_notes(finding),
        *_suggested(finding),
        *_units(run, finding, lines),
    ]


def _tables(finding: Finding, lines: str) -> Iterator[Item]:
    measured = [finding.measured, *([finding.control] if finding.control else []), *finding.details]
    rows = [
        (
            each.name,
            each.value,
            each.interval.low if each.interval else None,
            each.interval.high if each.interval else None,
            each.unit,
            each.n,
            each.dropped,
            each.interval.method if each.interval else "",
        )
        for each in measured
    ]
    columns = ("quantity", "value", "low", "high", "unit", "n", "left_out", "interval")
    python = f"{lines}[finding.measured, finding.control, *finding.details]"
    yield Grid("numbers", columns, rows, "Its numbers", python, height=_height(len(rows)))
    if finding.table:
        table = list(finding.table)
        yield Grid(
            "table", finding.columns, table, "The table behind it", lines + "finding.records()", _height(len(table))
        )


def _notes(finding: Finding) -> Iterator[Item]:
    notes = [html.Li(visible(note)) for note in finding.notes]
    defined = html.P(visible(f"Definition: {finding.definition}"), className="explorer-notes")
    source = html.P(visible(f"Source: {finding.source}"), className="explorer-notes")
    listed = [html.Ul(notes, className="explorer-notes")] if notes else []
    yield html.Section([html.H2("Notes"), *listed, defined, source], className="explorer-panel")


def _suggested(finding: Finding) -> Iterator[Item]:
    for suggestion in finding.suggests:
        name = visible(suggestion.intervention)
        yield html.Section(
            [
                html.H2(f"What to try: {name}"),
                words(suggestion.reason),
                words("In a casebook's stage"),
                copyable(as_yaml(suggestion), f"{name} as YAML"),
                words("In a notebook"),
                copyable(as_python(suggestion), f"{name} as Python"),
            ],
            className="explorer-panel",
        )


def _units(run: OpenedRun, finding: Finding, lines: str) -> Iterator[Item]:
    if not finding.evidence:
        return
    known: Any = run.unit_records()
    links = unit_links(run.name)
    rows = []
    for unit in finding.evidence:
        record = known.get(unit, {})
        said = tuple(str(record.get(key) or "") for key in ("sample", "condition", "stage"))
        rows.append((*said, *("open" for _ in links), unit))
    columns = ("sample", "condition", "stage", *links, "unit")
    title = f"The {len(rows):,} units it rests on"
    yield Grid("units", columns, rows, title, lines + "finding.evidence", _height(len(rows)), follow=links)


def _height(rows: int) -> int:
    """Return a table's height in pixels: all rows where they are few."""
    return min(420, 110 + 42 * rows)
