"""The page *Overview*: what was found, most important first, each finding opening its evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dash import dcc, html

from probe.dashboard.application.address import RUN, Control, View, write_address
from probe.dashboard.application.opened import OpenedRun
from probe.dashboard.application.page import Options, Page
from probe.dashboard.application.panel import Grid, Item, Panel, words
from probe.finding import Finding
from probe.telling.certainty import certainty
from probe.telling.headline import ranked
from probe.visible import visible

FINDING = Control("finding", "Finding")


class overview(Page):
    """Every finding as a card; one that is chosen with its figures, its table and its notes."""

    title: ClassVar[str] = "Overview"
    order: ClassVar[int] = 10
    controls: ClassVar[tuple[Control, ...]] = (RUN, FINDING)

    def options(self, view: View) -> Mapping[str, Options]:
        """Return the findings by what they are called."""
        found = self.run(view).keys()
        return {FINDING.name: [("", "all"), *((key, visible(key.replace("_", " "))) for key in found)]}

    def content(self, view: View) -> Sequence[Item]:
        """Return the cards, or the evidence of one finding."""
        run = self.run(view)
        if view[FINDING.name]:
            return self._evidence(run, view[FINDING.name])
        found = {id(finding): key for key, finding in run.keys().items()}
        if not found:
            said = "Nothing was found yet: the analyses run after a stage was read." if run.running else _NO_FINDINGS
            return [words(said)]
        cards = [self._card(run, found[id(finding)], finding) for finding in ranked(list(run.keys().values()))]
        return [html.Div(cards, className="explorer-cards")]

    def _card(self, run: OpenedRun, key: str, finding: Finding) -> Any:
        chosen = write_address({RUN.name: run.name, FINDING.name: key}, self.controls)
        return html.Article(
            [
                html.H2(dcc.Link(visible(finding.headline or finding.question), href=f"/overview{chosen}")),
                html.P(visible(finding.claim)),
                words(f"{finding.verdict} · {certainty(finding, brief=True)}"),
            ],
            className=f"explorer-card explorer-{finding.verdict}",
        )

    def _evidence(self, run: OpenedRun, key: str) -> Sequence[Item]:
        finding = run.finding(key)
        at = list(run.keys()).index(key)
        lines = f"import probe\n\nfinding = probe.open({str(run.path)!r}).findings()[{at}]\n"
        items: list[Item] = [
            html.P(visible(finding.claim), className="explorer-words"),
            words(f"{finding.question} · {finding.verdict} · {certainty(finding)}"),
        ]
        items += [Panel(figure, lines + f"finding.figures[{i}]") for i, figure in enumerate(finding.figures)]
        if finding.table:
            grid = Grid(
                "table", finding.columns, list(finding.table), "The table behind it", lines + "finding.records()"
            )
            items.append(grid)
        items += [words(note) for note in finding.notes]
        items.append(words(f"{finding.definition} ({finding.source})"))
        return items


_NO_FINDINGS = (
    "This run holds no findings: its casebook names no analyses, or it is a trace of its own. `probe run CASEBOOK` "
    "with analyses makes them; the other pages show what was captured."
)
