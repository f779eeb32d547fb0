"""The page *Positions*: what depends on where in the context something stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Final

from dash import dcc, html

from probe.analyses.charts.gold_by_place import gold_by_place
from probe.analyses.charts.loss_by_position import loss_by_position
from probe.analyses.charts.place_curves import place_curves
from probe.analyses.charts.spread_by_position import entropy_by_position, largest_by_length
from probe.analyses.measures.units_at import known_answers
from probe.dashboard.application.address import RUN, Control, View, number, write_address
from probe.dashboard.application.kept import Kept
from probe.dashboard.application.opened import Opened, OpenedRun
from probe.dashboard.application.page import Options, Page
from probe.dashboard.application.panel import Item, Panel, words
from probe.errors import MissingStatistic, UsageError
from probe.finding import Figure
from probe.storage.trace_store import Trace
from probe.storage.unit_answer import UnitAnswer
from probe.telling.certainty import certainty
from probe.visible import visible

PART = Control("part", "What", of=(RUN.name,))
CONDITION = Control("condition", "Condition", of=(RUN.name,))
LENGTH = Control("length", "Length", of=(RUN.name, "condition"))
BESIDE = Control("beside", "Other conditions beside it", default="off", kind="switch")

PARTS: Final = {
    "answers": "right answers and loss, by place",
    "attention": "attention against behaviour",
    "dispersion": "how spread attention is",
    "loss": "loss by position",
}
FOUND: Final = {
    "answers": ("lost_in_the_middle", "position_bias", "effective_length"),
    "attention": ("document_attention", "position_bias"),
    "dispersion": ("attention_dispersion",),
    "loss": ("context_use",),
}
"""The analyses whose findings say more of each part."""
ONLY: Final = {("attention", "position_bias"): ("depth_attention",)}
"""Of these, figures that belong to a part where not all do."""
EVERY: Final = "every"


class positions(Page):
    """U-curves, attention against behaviour, dispersion and loss by position, of a condition or of several."""

    title: ClassVar[str] = "Positions"
    order: ClassVar[int] = 70
    controls: ClassVar[tuple[Control, ...]] = (RUN, PART, CONDITION, LENGTH, BESIDE)

    def __init__(self, opened: Opened) -> None:
        super().__init__(opened)
        self._kept = Kept()

    def completed(self, view: View) -> dict[str, str]:
        """Return the view with the part that the run can fill, its baseline and every length where none are named.

        Raises UsageError for a part, condition or length that there is not.
        """
        full = super().completed(view)
        run = self.run(full)
        answers = self._answers(run)
        conditions = _conditions(answers)
        if not answers:
            return full | {PART.name: full[PART.name] or "answers"}
        full[PART.name] = full[PART.name] or self._fitting(run, answers)
        if full[PART.name] not in PARTS:
            raise UsageError(f"there is no part {full[PART.name]!r}; there are {', '.join(PARTS)}")
        full[CONDITION.name] = full[CONDITION.name] or conditions[0]
        if full[CONDITION.name] not in conditions:
            raise UsageError(f"{run.name} has no condition {full[CONDITION.name]!r}; it has {', '.join(conditions)}")
        full[LENGTH.name] = full[LENGTH.name] or EVERY
        if full[LENGTH.name] != EVERY and number(full, LENGTH.name) not in _lengths(answers, full[CONDITION.name]):
            raise UsageError(f"no prompt of {full[CONDITION.name]} has {full[LENGTH.name]} tokens")
        return full

    def options(self, view: View) -> Mapping[str, Options]:
        """Return the parts, the conditions, and the lengths of the chosen one."""
        answers = self._answers(self.run(view))
        lengths = _lengths(answers, view[CONDITION.name])
        return {
            PART.name: list(PARTS.items()),
            CONDITION.name: [(name, visible(name)) for name in _conditions(answers)],
            LENGTH.name: [(EVERY, "every length"), *((str(at), f"{at:,} tokens") for at in lengths)],
        }

    def content(self, view: View) -> Sequence[Item]:
        """Return the figures of the part, then what the analyses found of it."""
        run = self.run(view)
        answers = self._answers(run)
        if not answers:
            return [words(f"{run.name} holds no unit yet: nothing was captured.")]
        if isinstance(run.source, Trace) and view[PART.name] == "answers":
            return [words("A trace of its own is one answer at one place; curves over places want a run.")]
        made = {"answers": _answers, "attention": _attention, "dispersion": _dispersion, "loss": _loss}
        return [*made[view[PART.name]](self._drawn(run, answers), answers, view), *_findings(run, view)]

    def _drawn(self, run: OpenedRun, answers: Sequence[UnitAnswer]) -> Draw:
        """Return what draws a chart of the run, or words where it cannot be drawn; a chart is made once."""

        def draw(chart: Callable[..., Figure], *given: object, **fields: object) -> Item:
            module = chart.__module__
            said = ", ".join([*map(repr, given), *(f"{name}={value!r}" for name, value in fields.items())])
            call = f"{chart.__name__}(probe.open({str(run.path)!r}), {said})"
            source = (answers,) if chart is place_curves else (run.source,)
            known = {} if chart is place_curves else {"answers": answers}
            try:
                figure = self._kept(run, call, lambda: chart(*source, *given, **fields, **known))
            except MissingStatistic as error:
                return words(f"{_sentence(str(error))} {_held(answers)}")
            return Panel(figure, f"import probe\nfrom {module} import {chart.__name__}\n\n{call}")

        return draw

    def _answers(self, run: OpenedRun) -> list[UnitAnswer]:
        return known_answers(run.source, run.answers())

    def _fitting(self, run: OpenedRun, answers: Sequence[UnitAnswer]) -> str:
        """Return the first part that the run has something for."""
        if len({each.depth for each in answers} - {None}) > 1:
            return "answers"
        held = next((each for each in answers if each.captured), None)
        names = run.trace(held.unit).stored_names() if held else []
        return "loss" if "loss" in names else "dispersion" if "entropy" in names else "answers"


Draw = Callable[..., Item]


def _answers(draw: Draw, answers: Sequence[UnitAnswer], view: View) -> Iterator[Item]:
    conditions, lengths = _asked(answers, view)
    yield draw(place_curves, conditions, lengths)
    yield draw(place_curves, conditions, lengths, by="loss")


def _attention(draw: Draw, answers: Sequence[UnitAnswer], view: View) -> Iterator[Item]:
    yield draw(gold_by_place, view[CONDITION.name], _longest(answers, view))


def _dispersion(draw: Draw, answers: Sequence[UnitAnswer], view: View) -> Iterator[Item]:
    condition = view[CONDITION.name]
    by_length = draw(largest_by_length, condition, None)
    if isinstance(by_length, Panel):
        yield [draw(entropy_by_position, condition, _longest(answers, view)), by_length]
    else:
        yield by_length


def _loss(draw: Draw, answers: Sequence[UnitAnswer], view: View) -> Iterator[Item]:
    yield draw(loss_by_position, *_asked(answers, view))


def _findings(run: OpenedRun, view: View) -> Iterator[Item]:
    part = view[PART.name]
    found = run.keys()
    some = [(key, each) for name in FOUND[part] for key, each in found.items() if each.analysis == name]
    yield html.H2("What the analyses found", className="explorer-title")
    if not some:
        yield words(
            f"None of the analyses that ask about this ran: {', '.join(FOUND[part])}. Name them in a casebook's "
            "`analyses`; they read the baseline, the curves above any condition."
        )
    drawn: set[str] = set()
    for key, finding in some:
        address = write_address({RUN.name: run.name, "finding": key}, (RUN, Control("finding")))
        said = html.P(
            [visible(finding.claim), " ", dcc.Link("All of it, with its evidence", href=f"/overview{address}")],
            className="explorer-words",
        )
        lines = f"import probe\n\nprobe.open({str(run.path)!r}).findings()[{list(found).index(key)}].figures"
        only = ONLY.get((part, finding.analysis))
        panels = [
            Panel(figure, f"{lines}[{i}]")
            for i, figure in enumerate(finding.figures)
            if (only is None or figure.name in only) and figure.name not in drawn
        ]
        # A second finding of the same analysis is told, and drawn where all of it stands.
        drawn |= {panel.name for panel in panels}
        yield said
        yield words(f"{finding.verdict} · {certainty(finding)}")
        for i in range(0, len(panels), 2):
            yield panels[i : i + 2]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _held(answers: Sequence[UnitAnswer]) -> str:
    """Return which conditions hold something that was captured, for who chose another."""
    found = list(dict.fromkeys(visible(each.condition) for each in answers if each.captured))
    more = f" and {len(found) - 6} more" if len(found) > 6 else ""
    return f"In this run arrays were captured under {', '.join(found[:6])}{more}." if found else ""


def _conditions(answers: Sequence[UnitAnswer]) -> list[str]:
    """Return the conditions, baselines first."""
    found = {each.condition: each.role for each in reversed(answers)}
    return sorted(found, key=lambda name: (found[name] != "baseline", list(reversed(found)).index(name)))


def _lengths(answers: Sequence[UnitAnswer], condition: str) -> list[int]:
    return sorted({each.length for each in answers if each.condition == condition and not each.problem})


def _asked(answers: Sequence[UnitAnswer], view: View) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Return conditions and lengths that are drawn; beside one another conditions stand at one length."""
    length = number(view, LENGTH.name) if view[LENGTH.name] != EVERY else None
    if view[BESIDE.name] == "off":
        return (view[CONDITION.name],), None if length is None else (length,)
    length = _longest(answers, view) if length is None else length
    others = [name for name in _conditions(answers) if name != view[CONDITION.name]]
    return (view[CONDITION.name], *(name for name in others if length in _lengths(answers, name))), (length,)


def _longest(answers: Sequence[UnitAnswer], view: View) -> int:
    """Return the length that is chosen, else the longest of which something was captured."""
    if view[LENGTH.name] != EVERY:
        return number(view, LENGTH.name) or 0
    own = [each for each in answers if each.condition == view[CONDITION.name]]
    return max((each.length for each in own if each.captured), default=max((each.length for each in own), default=0))
