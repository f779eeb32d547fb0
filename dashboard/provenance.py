"""The page *Provenance*: where the numbers come from, and the command that makes them again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from dash import html

from probe.dashboard.application.address import RUN, Control, View
from probe.dashboard.application.page import Page
from probe.dashboard.application.panel import Grid, Item, words
from probe.visible import visible


class provenance(Page):
    """Model, weights, versions, casebook and seed of a run, and how to play it again."""

    title: ClassVar[str] = "Provenance"
    order: ClassVar[int] = 100
    controls: ClassVar[tuple[Control, ...]] = (RUN,)

    def content(self, view: View) -> Sequence[Item]:
        """Return the command, and everything that the record says."""
        run = self.run(view)
        record = run.record or {"provenance": run.trace("").provenance}
        items: list[Item] = []
        if command := record.get("command"):
            items += [
                words("The command that plays it again:"),
                html.Pre(visible(str(command)), className="explorer-lines"),
            ]
        rows = [row for part in _PARTS for row in _flat(record.get(part), part)]
        python = f"import probe\n\nprobe.open({str(run.path)!r}).record"
        return [
            *items,
            Grid("record", ("what", "value"), list(rows), "What the run says of itself", python, height=560),
        ]


_PARTS = ("status", "identity", "provenance", "casebook", "model_card", "stages", "failed", "expected", "success_rules")


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name} · {key}".replace("_", " "))
    elif value not in (None, "", [], {}):
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
