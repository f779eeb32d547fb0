"""The page *Provenance*: where the numbers come from, and the command that makes them again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from dash import html

from probe.dashboard.application.address import RUN, Control, View
from probe.dashboard.application.copyable import copyable
from probe.dashboard.application.opened import OpenedRun
from probe.dashboard.application.page import Page
from probe.dashboard.application.panel import Item, words
from probe.dashboard.findings.notices import notices
from probe.telling.provenance import Group, again, casebook_yaml, groups
from probe.telling.stages import command_of
from probe.visible import visible


class provenance(Page):
    """Model, weights, versions, casebook and seed of a run, and how to play it again."""

    title: ClassVar[str] = "Provenance"
    order: ClassVar[int] = 100
    controls: ClassVar[tuple[Control, ...]] = (RUN,)

    def content(self, view: View) -> Sequence[Item]:
        """Return the command, the record in groups, the casebook, and what it expects."""
        run = self.run(view)
        return [*notices(run), *_to_play_it_again(run), *_said(run), *_casebook(run), *_record(run)]


def _to_play_it_again(run: OpenedRun) -> Iterator[Item]:
    if not run.record:
        yield words("This is a trace of its own: no casebook played it, and no command is on record.")
        return
    made = [html.H2("To play it again"), copyable(again(run.record), "the command")]
    if not command_of(run.record):
        made.append(words("No command is on record: this is the shortest that names its casebook and its model."))
    made.append(words("Into the same folder it goes on with this run; with another --out it plays all of it anew."))
    yield html.Section(made, className="explorer-panel")


def _said(run: OpenedRun) -> Iterator[Item]:
    record = run.record or {"provenance": run.trace("").provenance}
    found = groups(record)
    if found:
        yield html.Div([_group(group) for group in found], className="explorer-groups")


def _group(group: Group) -> Any:
    rows = []
    for name, value in group.rows:
        rows += [html.Dt(visible(name[:1].upper() + name[1:])), html.Dd(visible(value))]
    return html.Section([html.H2(group.title), html.Dl(rows)], className="explorer-group")


def _casebook(run: OpenedRun) -> Iterator[Item]:
    if text := casebook_yaml(run.record):
        yield html.Section(
            [
                html.H2("The casebook, with everything that was set"),
                words(
                    "Save it as casebook.yaml; `probe run casebook.yaml` plays it. What is left out is as by default."
                ),
                copyable(text, "the casebook as YAML"),
            ],
            className="explorer-panel",
        )


def _record(run: OpenedRun) -> Iterator[Item]:
    if stages := run.record.get("stages"):
        lines = json.dumps(stages, indent=1, ensure_ascii=False)
        said = "What each stage resolved (the heads that a finding named, the draws of a control)"
        yield html.Details([html.Summary(said), copyable(lines, "the stages as JSON")])
    python = f"import probe\n\nprobe.open({str(run.path)!r})" + (".record" if run.record else ".provenance")
    yield html.Section([html.H2("In Python"), copyable(python, "the lines")], className="explorer-panel")
