"""The page *Head atlas*: every head by any score of the run, one score against another, and how to ablate some."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, cast
from urllib.parse import quote

from dash import ClientsideFunction, Dash, Input, Output, State, html

from probe.analyses.charts.head_atlas import Drag, head_scatter
from probe.analyses.charts.head_atlas import head_atlas as atlas_of
from probe.analyses.measures.scores_of_heads import Head, Score, ScoresOfHeads
from probe.dashboard.application.address import RUN, UNIT, Control, View
from probe.dashboard.application.copyable import copyable
from probe.dashboard.application.page import Options, Page
from probe.dashboard.application.panel import Grid, Item, Panel, problem, words
from probe.dashboard.heads.known import heads_of, opened_unit, run_and_unit
from probe.dashboard.heads.scored import MOST_BYTES, NOTHING
from probe.errors import MissingStatistic, UsageError
from probe.figure_table import Rows
from probe.finding import Figure
from probe.telling.ablation import Form, ablation
from probe.visible import visible

BY = Control("by", "Coloured by", of=(RUN.name,))
ACROSS = Control("x", "Scatter: across", of=(RUN.name,))
UP = Control("y", "Scatter: up", of=(RUN.name,))
HEADS = Control("heads", "Chosen heads, as layer:head", kind="text", of=(RUN.name,))
DRAG = Control("drag", "A drag chooses with a", default="box", kind="choice", options=("box", "lasso"))
CLICK = Control("click", "A click on a head", default="opens it", kind="choice", options=("opens it", "chooses it"))
FORM = Control("form", "Ablated form", default="zero", kind="choice", options=("zero", "uniform"))

MOST_CELLS: Final = 24_000
"""Cells of the table that are shown; its CSV has all."""
MOST_CHOSEN: Final = 4_096


class head_atlas(Page):
    """Layer × head by any score, a scatter of two scores, a table of all, and the experiment that removes some."""

    title: ClassVar[str] = "Head atlas"
    live: ClassVar[bool] = True
    order: ClassVar[int] = 30
    controls: ClassVar[tuple[Control, ...]] = (RUN, UNIT, BY, ACROSS, UP, HEADS, DRAG, CLICK, FORM)

    def completed(self, view: View) -> dict[str, str]:
        """Return the view with a score where it names none: the first of a finding, else of the trace."""
        full = super().completed(view)
        names = list(self._scores(full).scores)
        traced = [name for name in names if name.startswith("trace.")]
        full[BY.name] = full[BY.name] or next(iter(names), "")
        full[ACROSS.name] = full[ACROSS.name] or full[BY.name]
        others = [name for name in [*traced, *names] if name != full[ACROSS.name]]
        full[UP.name] = full[UP.name] or next(iter(others), full[ACROSS.name])
        return full

    def options(self, view: View) -> Mapping[str, Options]:
        """Return the scores, by what they are called."""
        listed = [(key, visible(score.name)) for key, score in self._scores(view).scores.items()]
        return {BY.name: listed, ACROSS.name: listed, UP.name: listed}

    def content(self, view: View) -> Sequence[Item]:
        """Return map, scatter, the chosen heads' experiment and the table; raises MissingStatistic without heads."""
        scores = self._scores(view)
        if not scores.scores:
            raise MissingStatistic(NOTHING)
        chosen, wrong = chosen_heads(view[HEADS.name], scores)
        items: list[Item] = [problem(each, "Not chosen") for each in wrong]
        lines = f"scores_of_heads({run_and_unit(self.run(view), self.trace(view))})"
        items.append(list(self._figures(view, scores, chosen, lines)))
        items += self._ablation(view, scores, chosen)
        items.append(self._table(view, scores, chosen, lines))
        return [*items, *(words(note) for note in scores.notes)]

    def register(self, app: Dash) -> None:
        """Add to a page's callbacks that a box, a lasso or a click in a figure changes the address."""
        super().register(app)
        place = self._id("place")
        for figure in ("head_atlas", "head_scatter"):
            for does, said in (("dragged", "selectedData"), ("clicked", "clickData")):
                app.clientside_callback(
                    ClientsideFunction("heads", does),
                    Output(place, "search", allow_duplicate=True),
                    Input({"figure": self._id(figure)}, said),
                    State(place, "search"),
                    prevent_initial_call=True,
                )

    def _scores(self, view: View) -> ScoresOfHeads:
        return heads_of(self.run(view), view.get(UNIT.name, ""))

    def _figures(self, view: View, scores: ScoresOfHeads, chosen: Sequence[Head], lines: str) -> Iterator[Item]:
        drag: Drag = "lasso" if view[DRAG.name] == "lasso" else "select"
        rest = (f", marked={list(chosen)!r}" if chosen else "") + (f", drag={drag!r}" if drag != "select" else "")
        made: tuple[tuple[str, Callable[..., Figure], tuple[str, ...]], ...] = (
            ("head_atlas", atlas_of, (view[BY.name],)),
            ("head_scatter", head_scatter, (view[ACROSS.name], view[UP.name])),
        )
        for name, make, keys in made:
            try:
                figure = make(scores, *keys, marked=chosen, drag=drag)
            except UsageError as error:
                yield problem(str(error))
                continue
            arguments = ", ".join(map(repr, keys))
            python = f"{_IMPORTS.format(name)}{name}({lines}, {arguments}{rest})"
            yield Panel(figure, python)

    def _ablation(self, view: View, scores: ScoresOfHeads, chosen: Sequence[Head]) -> Iterator[Item]:
        title = html.H2(f"Ablate these {len(chosen)} heads" if chosen else "Ablate heads")
        if not chosen:
            yield html.Section([title, words(HOW_TO_CHOOSE)], className="explorer-panel")
            return
        run, trace = self.run(view), self.trace(view)
        halves = {finding.parameters.get("half") for finding in run.findings() if "head" in finding.columns}
        found = ablation(
            run.record,
            str(trace.provenance.get("model") or "needle"),
            chosen,
            form=cast("Form", view[FORM.name]),
            heads_by_layer={layer: len(heads) for layer, heads in scores.by_layer.items()},
            half="test" if "find" in halves else "both",
            opened=opened_unit(run, trace),
        )
        parts: list[Any] = [title, words(", ".join(f"({layer}, {head})" for layer, head in chosen))]
        for note in found.notes:
            parts.append(words(note))
        if found.command:
            parts += [words("Writes the casebook and plays it, in a shell:"), copyable(found.command, "the command")]
        parts += [words("The conditions alone, for a stage of your own:"), copyable(found.condition, "the conditions")]
        parts += [words("In a notebook, on the prompt of this unit:"), copyable(found.python, "the Python lines")]
        yield html.Section(parts, className="explorer-panel")

    def _table(self, view: View, scores: ScoresOfHeads, chosen: Sequence[Head], lines: str) -> Grid:
        first = dict.fromkeys(key for key in (view[BY.name], view[ACROSS.name], view[UP.name]) if key in scores.scores)
        cheap = [key for key, score in scores.scores.items() if key in first or score.stored_bytes <= MOST_BYTES]
        listed = [scores.scores[key] for key in [*first, *(key for key in cheap if key not in first)]]
        room = max(4, MOST_CELLS // max(1, len(scores.heads)))
        title = f"All {len(scores.heads):,} heads"
        if len(listed) > room:
            title += f" by {room} of {len(listed)} scores; the CSV has all"
        if len(cheap) < len(scores.scores):
            title += "; scores that are kept per token are read when they are chosen"
        at = f"/head?run={quote(self.run(view).name, safe='')}&unit={quote(view[UNIT.name], safe='')}"
        columns, rows = _rows(scores, listed[:room], chosen)
        python = f"{_MEASURE}scores = {lines}\n{{key: score.values for key, score in scores.scores.items()}}"
        follow = {"head": at + "&layer={layer}&head={head}"}
        return _Table("all_heads", columns, rows, title, python, 420, follow, lambda: _rows(scores, listed, chosen))


HOW_TO_CHOOSE: Final = (
    "Choose heads by dragging a box or a lasso over the map or the scatter (with Shift it adds), by a click (Shift, or "
    "“chooses it” beside), or by writing them: 2:9, 2:13 are heads 9 and 13 of layer 2. What removes them is then "
    "written here, with its control and the command that plays it."
)
_MEASURE: Final = "import probe\nfrom probe.analyses.measures.scores_of_heads import scores_of_heads\n\n"
_IMPORTS: Final = (
    "import probe\nfrom probe.analyses.charts.head_atlas import {}\n"
    "from probe.analyses.measures.scores_of_heads import scores_of_heads\n\n"
)


@dataclass(frozen=True)
class _Table(Grid):
    """A table whose CSV has more columns than are shown."""

    whole: Callable[[], tuple[Sequence[str], Rows]] = lambda: ((), [])

    def rows(self) -> tuple[Sequence[str], Rows]:
        return self.whole()


def chosen_heads(text: str, scores: ScoresOfHeads) -> tuple[list[Head], list[str]]:
    """Return the heads of a list such as `2:9, 2:13`, in order, and what is wrong with the rest, in sentences."""
    found: Counter[Head] = Counter()
    wrong = []
    for part in [each.strip() for each in re.split(r"[,;]", text) if each.strip()][:MOST_CHOSEN]:
        match = re.fullmatch(r"([0-9]{1,6})\s*[:.]\s*([0-9]{1,6})", part)
        if match is None:
            wrong.append(f"{part[:60]!r} is no head; write layer:head, such as 2:9, with commas between")
        elif (head := (int(match[1]), int(match[2]))) not in scores.index:
            wrong.append(f"there is no head {head[1]} in layer {head[0]} here")
        else:
            found[head] += 1
    return sorted(found), wrong[:8]


def _rows(scores: ScoresOfHeads, listed: Sequence[Score], chosen: Sequence[Head]) -> tuple[list[str], Rows]:
    """Return columns and rows, a head each, those with the largest first score first."""
    columns = ["layer", "head", "chosen", *scores.labels, *(score.name for score in listed)]
    marked = set(chosen)
    values = [[None if number != number else number for number in score.values.tolist()] for score in listed]
    order = range(len(scores.heads))
    if values:
        order = sorted(order, key=lambda at: (values[0][at] is None, -(values[0][at] or 0.0), at))  # type: ignore[assignment]
    rows: Rows = []
    for at in order:
        head = scores.heads[at]
        said = (labels.get(head, "") for labels in scores.labels.values())
        rows.append((*head, "●" if head in marked else "", *said, *(column[at] for column in values)))
    return columns, rows
