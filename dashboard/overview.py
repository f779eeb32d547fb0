"""The page *Overview*: what was found, most surprising first, each finding opening its evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from dash import html

from probe.dashboard.application.address import RUN, Control, View, write_address
from probe.dashboard.application.opened import OpenedRun
from probe.dashboard.application.page import Options, Page
from probe.dashboard.application.panel import Grid, Item, trouble, words
from probe.dashboard.findings.card import card
from probe.dashboard.findings.evidence import evidence
from probe.dashboard.findings.notices import notices
from probe.errors import StoreCorrupt
from probe.telling.summary import unfinished
from probe.telling.surprise import ORDER, Told, by_surprise, expected_results, names_analyses
from probe.visible import visible

FINDING = Control("finding", "Finding", default="all", of=(RUN.name,))


class overview(Page):
    """Every finding as a card; one that is chosen with everything that it rests on."""

    title: ClassVar[str] = "Overview"
    order: ClassVar[int] = 10
    controls: ClassVar[tuple[Control, ...]] = (RUN, FINDING)

    def options(self, view: View) -> Mapping[str, Options]:
        """Return the findings by what they are called, in the order of the cards."""
        told = _told(self.run(view))
        return {
            FINDING.name: [(FINDING.default, "all findings"), *((key, visible(key.replace("_", " "))) for key in told)]
        }

    def content(self, view: View) -> Sequence[Item]:
        """Return the notices and the cards, or the evidence of one finding."""
        run = self.run(view)
        if (chosen := view[FINDING.name]) != FINDING.default:
            run.finding(chosen)
            return evidence(run, _told(run)[chosen], f"/overview{write_address({RUN.name: run.name}, self.controls)}")
        try:
            told = _told(run)
        except StoreCorrupt as error:
            return [*notices(run), trouble(error)]
        if not told:
            return [*notices(run), words(_nothing(run))]
        cards = [card(each, self._address(run, key)) for key, each in told.items()]
        return [*notices(run), html.Div(cards, className="explorer-cards"), words(ORDER), *_expected(run)]

    def _address(self, run: OpenedRun, key: str) -> str:
        return f"/overview{write_address({RUN.name: run.name, FINDING.name: key}, self.controls)}"


def _told(run: OpenedRun) -> dict[str, Told]:
    """Return the findings by their keys, most surprising first."""
    keys = list(run.keys())
    return {keys[each.index]: each for each in by_surprise(run.findings(), run.record)}


def _nothing(run: OpenedRun) -> str:
    """Return why there is no finding, and what to do about it."""
    if run.running or (unfinished(run.record) and names_analyses(run.record)):
        return "Nothing was found yet: the analyses run after a stage was read."
    if names_analyses(run.record):
        return (
            f"{visible(str(run.path))}/findings.json is missing, though the casebook names analyses. The command that "
            "played the run makes it again, and reads no unit twice."
        )
    return _NO_FINDINGS


def _expected(run: OpenedRun) -> list[Item]:
    """Return what the casebook expects, as a table, with the expectations of findings that were not made."""
    rows = [
        (str(each["expected"]), "✓ met" if each["met"] else "✗ not met", str(each["found"]))
        for each in expected_results(run.record)
    ]
    if not rows:
        return []
    python = f"import probe\n\nprobe.open({str(run.path)!r}).record['expected']"
    title = "What the casebook expects"
    return [Grid("expected", ("expected", "met", "found"), rows, title, python, height=min(420, 110 + 42 * len(rows)))]


_NO_FINDINGS = (
    "This run holds no findings: its casebook names no analyses, or it is a trace of its own. `probe run CASEBOOK` "
    "with analyses makes them; the other pages show what was captured."
)
