"""The page *Needle grid*: right answers and answer loss by prompt length and by where the needle stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

from dash import dcc, html

from probe.analyses.charts.needle_grid import answers_by_length, needle_difference
from probe.analyses.charts.needle_grid import needle_grid as grid
from probe.analyses.measures.needle_cells import Place, Places, condition_totals, needle_cells, samples_at
from probe.dashboard.application.address import RUN, Control, View, number, write_address
from probe.dashboard.application.opened import OpenedRun
from probe.dashboard.application.page import Options, Page
from probe.dashboard.application.panel import Grid, Item, Panel, words
from probe.dashboard.application.unit_links import unit_links
from probe.errors import MissingStatistic, UsageError
from probe.figure_table import Rows
from probe.storage.unit_answer import UnitAnswer
from probe.telling.summary import Failure, in_groups
from probe.visible import visible

CONDITION = Control("condition", "Condition", of=(RUN.name,))
AGAINST = Control("against", "Held against", of=(RUN.name, "condition"))
BY = Control("by", "Shown", "accuracy", "choice", ("accuracy", "loss"))
TABLES = Control("tables", "Tables beneath", "off", "switch")
LENGTH = Control("length", of=(RUN.name, "condition"))
DEPTH = Control("depth", of=(RUN.name, "condition"))


class needle_grid(Page):
    """A condition's grid, its difference from another's, and the samples of the cell that was clicked."""

    title: ClassVar[str] = "Needle grid"
    order: ClassVar[int] = 20
    controls: ClassVar[tuple[Control, ...]] = (RUN, CONDITION, AGAINST, BY, TABLES, LENGTH, DEPTH)

    def completed(self, view: View) -> dict[str, str]:
        """Return the view with the first baseline as the condition, and what it can be held against."""
        full = super().completed(view)
        answers = self.run(full).answers()
        if not answers:
            return full
        conditions = _conditions(answers)
        for part in (CONDITION.name, AGAINST.name):
            if full[part] and full[part] not in conditions:
                raise UsageError(f"{full[RUN.name]} has no condition {full[part]!r}; it has {', '.join(conditions)}")
        full[CONDITION.name] = full[CONDITION.name] or _baseline(answers, "")
        full[AGAINST.name] = full[AGAINST.name] or _baseline(answers, full[CONDITION.name])
        return full

    def options(self, view: View) -> Mapping[str, Options]:
        """Return the conditions, in the order in which they were read."""
        offered = list(_conditions(self.run(view).answers()).items())
        return {CONDITION.name: offered, AGAINST.name: offered}

    def content(self, view: View) -> Sequence[Item]:
        """Return the grids, the samples of a cell where one is chosen, and the numbers behind."""
        run = self.run(view)
        answers = run.answers()
        if not answers:
            return [words(_NO_UNITS if not run.running else "No unit was read yet; this page fills in by itself.")]
        return [*_problems(answers), *self._shown(run, answers, view)]

    def _shown(self, run: OpenedRun, answers: list[UnitAnswer], view: View) -> Iterator[Item]:
        condition, against = view[CONDITION.name], view[AGAINST.name]
        by = cast(Literal["accuracy", "loss"], view[BY.name])
        places = Places.of(answers, [condition, against])
        place = _chosen(view, places)
        try:
            panels = self._grids(run, answers, view, place)
        except MissingStatistic as error:
            yield words(f"{str(error)[0].upper()}{str(error)[1:]}.")
            yield from _by_length(run, answers, condition, against, by)
            return
        yield panels
        if place is not None:
            back = write_address({**view, LENGTH.name: "", DEPTH.name: ""}, self.controls)
            yield from _samples(run, answers, view, place, places, back)
        else:
            yield words("Click a cell to see its samples. Keys: c and C step through the conditions.")
        # Off unless asked for: each takes as long to draw as the figures do.
        if view[TABLES.name] == "on":
            yield _table(run, answers, condition, against, by, places)
            yield _conditions_table(run, answers, by)

    def _grids(self, run: OpenedRun, answers: list[UnitAnswer], view: View, place: Place | None) -> list[Item]:
        condition, against = view[CONDITION.name], view[AGAINST.name]
        by = cast(Literal["accuracy", "loss"], view[BY.name])
        here = write_address({**view, LENGTH.name: "", DEPTH.name: ""}, self.controls)
        follow = f"/{self.name}{here}{'&' if here else '?'}length={{x}}&depth={{y}}"
        marked = "" if place is None else f", marked={place!r}"
        run_, options = f"probe.open({str(run.path)!r})", f"by={by!r}{marked}"
        lines = "import probe\nfrom probe.analyses.charts.needle_grid import {0}\n\n{0}(" + run_

        def table() -> tuple[Sequence[str], Rows]:
            return _table(run, answers, condition, against, by, Places.of(answers, [condition, against])).rows()

        panels: list[Item] = [
            Panel(
                grid(answers, condition, by=by, marked=place),
                lines.format("needle_grid") + f", {condition!r}, {options})",
                table,
                follow,
            )
        ]
        if condition != against:
            panels.append(
                Panel(
                    needle_difference(answers, condition, against, by=by, marked=place),
                    lines.format("needle_difference") + f", {condition!r}, {against!r}, {options})",
                    table,
                    follow,
                )
            )
        return panels


def _conditions(answers: Sequence[UnitAnswer]) -> dict[str, str]:
    """Return the conditions with what they are in words, in the order in which they were read."""
    found: dict[str, str] = {}
    for each in answers:
        found.setdefault(each.condition, " · ".join(visible(part) for part in (each.condition, each.role) if part))
    return found


def _baseline(answers: Sequence[UnitAnswer], condition: str) -> str:
    """Return the first baseline: of a stage that has the condition, else of any; else the first condition."""
    stages = {each.stage for each in answers if each.condition == condition}
    untouched = [each for each in answers if each.role == "baseline"]
    near = [each for each in untouched if each.stage in stages]
    return (near or untouched or answers)[0].condition


def _chosen(view: View, places: Places) -> Place | None:
    """Return the cell that an address names; raises UsageError where there is none there."""
    length, depth = number(view, LENGTH.name), view[DEPTH.name]
    if length is None and not depth:
        return None
    named = {f"{at:g}": at for at in places.depths}
    if length not in places.lengths or depth not in named:
        raise UsageError(
            f"there is no cell at length {view[LENGTH.name] or '?'} and depth {depth or '?'}; lengths are "
            f"{', '.join(map(str, places.lengths))}, depths {', '.join(named)}"
        )
    return int(length or 0), named[depth]


def _problems(answers: Sequence[UnitAnswer]) -> Iterator[Item]:
    failed = [Failure(each.unit, each.problem) for each in answers if each.problem]
    if failed:
        several = "" if len(failed) == 1 else "s"
        listed = [html.Li(visible(said)) for said in in_groups(failed)[:8]]
        yield html.Div(
            [html.H2("✗ Left out"), html.P(f"{len(failed)} unit{several} in no number here:"), html.Ul(listed)],
            className="explorer-notice explorer-bad",
        )


def _by_length(
    run: OpenedRun, answers: Sequence[UnitAnswer], condition: str, against: str, by: Literal["accuracy", "loss"]
) -> Iterator[Item]:
    """Yield what can be shown instead where no needle has a depth: the same by length alone, or the text's loss."""
    conditions = list(dict.fromkeys((against, condition)))
    asked = any(each.correct is not None for each in answers if each.condition in conditions)
    what = by if asked else "text"
    yield words(
        "By length alone it is this:" if asked else "Nothing was asked; the loss of the text by length is this:"
    )
    lines = (
        "import probe\nfrom probe.analyses.charts.needle_grid import answers_by_length\n\n"
        f"answers_by_length(probe.open({str(run.path)!r}), {conditions!r}, by={what!r})"
    )
    yield Panel(answers_by_length(answers, conditions, by=what), lines)


def _samples(
    run: OpenedRun, answers: Sequence[UnitAnswer], view: View, place: Place, places: Places, back: str
) -> Iterator[Item]:
    condition, against = view[CONDITION.name], view[AGAINST.name]
    links = unit_links(run.name)
    other: dict[str, list[bool]] = {}
    for each in samples_at(answers, against, place, places):
        if each.correct is not None and not each.problem:
            other.setdefault(each.sample, []).append(each.correct)
    rows = [
        (
            each.sample,
            _result(each),
            each.answer,
            each.response,
            each.answer_loss,
            *(("" if each.sample not in other else _share(other[each.sample]),) if against != condition else ()),
            *("open" for _ in links),
            each.draw,
            each.unit,
        )
        for each in samples_at(answers, condition, place, places)
    ]
    beside = (f"under_{against}",) if against != condition else ()
    columns = ("sample", "result", "right_answer", "response", "answer_loss", *beside, *links, "draw", "unit")
    title = f"{len(rows)} samples at {place[0]:,} tokens, depth {place[1]:g}: {condition}"
    yield html.P(dcc.Link("← All cells", href=f"/needle_grid{back}"), className="explorer-notes")
    python = f"import probe\n\nrun = probe.open({str(run.path)!r})\n{[row[-1] for row in rows]!r}"
    yield Grid("samples", columns, rows, title, python, height=min(420, 110 + 42 * len(rows)), follow=links)


def _result(answer: UnitAnswer) -> str:
    if answer.problem:
        return f"– {answer.problem}"
    return "– not judged" if answer.correct is None else "✓ right" if answer.correct else "✗ wrong"


def _share(right: Sequence[bool]) -> str:
    if len(right) == 1:
        return "✓ right" if right[0] else "✗ wrong"
    return f"{sum(right)} of {len(right)} right"


def _table(
    run: OpenedRun,
    answers: Sequence[UnitAnswer],
    condition: str,
    against: str,
    by: Literal["accuracy", "loss"],
    places: Places,
) -> Grid:
    rows = [
        (
            cell.length,
            cell.depth,
            cell.num_prompts,
            cell.num_units,
            cell.num_right,
            cell.value,
            *_ends(cell.interval),
            cell.num_pairs,
            cell.difference,
            *_ends(cell.difference_interval),
        )
        for cell in needle_cells(answers, condition, by=by, against=against, places=places)
    ]
    value = "share_right" if by == "accuracy" else "answer_loss"
    columns = (
        *("length_tokens", "depth", "num_prompts", "num_units", "num_right", value, f"{value}_low", f"{value}_high"),
        *("num_pairs", f"less_{against}", "difference_low", "difference_high"),
    )
    lines = (
        "import probe\nfrom probe.analyses.measures.needle_cells import needle_cells\n"
        "from probe.storage.unit_answer import answers_of\n\n"
        f"needle_cells(answers_of(probe.open({str(run.path)!r})), {condition!r}, by={by!r}, against={against!r})"
    )
    return Grid("cells", columns, rows, f"Cell by cell: {condition}", lines)


def _conditions_table(run: OpenedRun, answers: Sequence[UnitAnswer], by: Literal["accuracy", "loss"]) -> Grid:
    """Return every condition with how many of its units are right, each leading to its grid."""
    rows = [
        (
            each.condition,
            ", ".join(each.roles),
            ", ".join(each.stages),
            each.num_units,
            each.num_left_out,
            each.share_right,
            each.answer_loss,
        )
        for each in condition_totals(answers)
    ]
    columns = ("condition", "role", "stage", "num_units", "left_out", "share_right", "mean_answer_loss")
    follow = {"condition": f"/needle_grid{write_address({RUN.name: run.name, BY.name: by}, (RUN, BY))}"}
    follow["condition"] += "&condition={condition}"
    return Grid("conditions", columns, rows, "All conditions, over all cells", follow=follow)


def _ends(interval: Any) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval.low, interval.high)


_NO_UNITS = (
    "This run holds no units, or it is a trace of its own. A casebook over a workload with lengths and depths fills "
    "this page: `probe run first-look`, say."
)
