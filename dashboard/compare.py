"""The page *Compare*: two runs, or two conditions, prompt by prompt and head by head."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, cast
from urllib.parse import quote

from probe.analyses.charts.atlas_difference import drawn_atlas
from probe.analyses.charts.paired_differences import Of, drawn_by_place, drawn_prompts
from probe.analyses.measures.condition_effect import Quantity
from probe.analyses.measures.head_differences import (
    MOST_PAIRS,
    check_shapes,
    common_columns,
    common_statistics,
    finding_difference,
    trace_difference,
)
from probe.analyses.measures.paired_answers import FLIP_COLUMNS, QUANTITIES, PairedAnswers, paired_answers
from probe.analyses.measures.units_at import known_answers
from probe.dashboard.application.address import RUN, Control, View
from probe.dashboard.application.kept import Kept
from probe.dashboard.application.opened import Opened, OpenedRun
from probe.dashboard.application.page import Options, Page
from probe.dashboard.application.panel import Grid, Item, Panel, words
from probe.errors import MissingStatistic, ProbeError, UsageError
from probe.storage.trace_store import Trace
from probe.storage.unit_answer import UnitAnswer
from probe.telling.differing import differing
from probe.visible import visible

RUN_A: Final = Control(RUN.name, "A: run")
CONDITION_A = Control("condition", "A: condition", of=(RUN.name,))
RUN_B = Control("run_b", "B: run")
CONDITION_B = Control("condition_b", "B: condition", of=("run_b",))
QUANTITY = Control("quantity", "Compared")
SCORE = Control("score", "Of each head", of=(RUN.name, "run_b"))
_RECORDS: Final = ("provenance", "casebook")
_MOST_NAMED: Final = 8
_HASH: Final = re.compile(r"\b[0-9a-f]{40,64}\b")
_PAIRED: Final = "from probe.analyses.measures.paired_answers import paired_answers"


class compare(Page):
    """Paired differences with intervals, what flipped, the atlas of differences, and what else is not the same."""

    title: ClassVar[str] = "Compare"
    order: ClassVar[int] = 90
    controls: ClassVar[tuple[Control, ...]] = (RUN_A, CONDITION_A, RUN_B, CONDITION_B, QUANTITY, SCORE)

    def __init__(self, opened: Opened) -> None:
        super().__init__(opened)
        self._kept = Kept()

    def completed(self, view: View) -> dict[str, str]:
        """Return the view with A's baseline, and as B what has most prompts in common with it, where none are named.

        Raises UsageError for a run, condition or quantity that there is not.
        """
        full = super().completed(view)
        a = self.run(full)
        full[CONDITION_A.name] = full[CONDITION_A.name] or next(iter(_conditions(_answers(a))), "")
        if not full[RUN_B.name]:
            full[RUN_B.name] = self._other(a, full[CONDITION_A.name])
        b = self.opened.run(full[RUN_B.name])
        full[RUN_B.name] = b.name
        full[CONDITION_B.name] = full[CONDITION_B.name] or _fitting(a, full[CONDITION_A.name], b)
        for run, name in ((a, full[CONDITION_A.name]), (b, full[CONDITION_B.name])):
            there = _conditions(_answers(run))
            if name and name not in there:
                raise UsageError(f"{run.name} has no condition {name!r}; it has {', '.join(there)}")
        if not full[QUANTITY.name]:
            measured = (each for each in QUANTITIES if any(self._paired(full).values(each)))
            full[QUANTITY.name] = next(measured, "accuracy")
        if full[QUANTITY.name] not in QUANTITIES:
            raise UsageError(f"there is no quantity {full[QUANTITY.name]!r}; there are {', '.join(QUANTITIES)}")
        full[SCORE.name] = full[SCORE.name] or next(iter(self._scores(full, self._paired(full))), "")
        return full

    def options(self, view: View) -> Mapping[str, Options]:
        """Return both runs' conditions, the quantities, and what both have of each head."""
        a, b = self._sides(view)
        return {
            CONDITION_A.name: [(name, visible(name)) for name in _conditions(_answers(a))],
            RUN_B.name: [(name, name) for name in self.opened.names],
            CONDITION_B.name: [(name, visible(name)) for name in _conditions(_answers(b))],
            QUANTITY.name: [(key, name) for key, (name, _) in QUANTITIES.items()],
            SCORE.name: [(key, visible(name)) for key, name in self._scores(view, self._paired(view)).items()],
        }

    def content(self, view: View) -> Sequence[Item]:
        """Return what is compared, how it differs, what flipped, the heads, and what else differs."""
        a, b = self._sides(view)
        if not _answers(a) or not _answers(b):
            return [words("One of the two holds no unit yet: nothing was captured.")]
        paired = self._paired(view)
        return [
            *_said(paired, view),
            *self._differences(paired, view),
            *self._flips(paired, view),
            *self._atlas(paired, view),
            *self._differing(view),
        ]

    def _sides(self, view: View) -> tuple[OpenedRun, OpenedRun]:
        return self.run(view), self.opened.run(view[RUN_B.name])

    def _paired(self, view: View) -> PairedAnswers:
        a, b = self._sides(view)
        key = ("pairs", b.name, b.version, view[CONDITION_A.name], view[CONDITION_B.name])
        conditions = (view[CONDITION_A.name], view[CONDITION_B.name])
        return self._kept(a, key, lambda: paired_answers(_answers(a), conditions[0], _answers(b), conditions[1]))

    def _differences(self, paired: PairedAnswers, view: View) -> Iterator[Item]:
        if not paired.pairs:
            return
        call, start = _call(self._sides(view), view), "from probe.analyses.charts.paired_differences import "
        pairs = _imports(self._sides(view), _PAIRED) + f"\npaired_answers({call})"
        quantity = cast("Quantity", view[QUANTITY.name])
        a, b = self._sides(view)
        key = (b.name, b.version, view[CONDITION_A.name], view[CONDITION_B.name])
        rows = self._kept(a, ("rows", *key), lambda: list(_rows(paired)))
        columns = ("quantity", "unit", "A", "B", "B_less_A", "low", "high", "p", "prompts", "interval_and_test")
        yield Grid("differences", columns, rows, "B less A, paired by prompt", pairs, 230)

        def panel(name: str, made: Any, fields: str) -> Item:
            try:
                figure = self._kept(a, (fields, name, *key), made)
            except MissingStatistic as error:
                return words(f"{str(error)[:1].upper()}{str(error)[1:]}.")
            return Panel(figure, _imports(self._sides(view), start + name) + f"\n{name}({call}, {fields})")

        def place(of: Of) -> Item:
            fields = f"quantity={quantity!r}, of={of!r}"
            return panel("difference_by_place", lambda: drawn_by_place(paired, quantity=quantity, of=of), fields)

        yield [place("length"), place("depth")]
        each: Quantity = "answer_loss" if quantity == "accuracy" else quantity
        yield panel("prompt_by_prompt", lambda: drawn_prompts(paired, quantity=each), f"quantity={each!r}")

    def _flips(self, paired: PairedAnswers, view: View) -> Iterator[Item]:
        flips = paired.flips()
        if not flips:
            yield words("No prompt is right on one side and wrong on the other.")
            return
        a, b = (f"/attention?run={quote(run.name, safe='')}&unit=" for run in self._sides(view))
        yield Grid(
            "flips",
            FLIP_COLUMNS,
            flips,
            f"{len(flips)} of {len(paired.pairs)} prompts flipped: each answer leads to its attention",
            _imports(self._sides(view), _PAIRED) + f"\npaired_answers({_call(self._sides(view), view)}).flips()",
            follow={"A_answers": a + "{A}", "B_answers": b + "{B}"},
        )

    def _captured(self, paired: PairedAnswers, view: View) -> list[tuple[Trace, Trace]]:
        """Return the traces of the first pairs of which arrays were captured on both sides."""
        a, b = self._sides(view)
        both = [p for p in paired.pairs if p.first[0].captured and p.second[0].captured][:MOST_PAIRS]
        key = ("traces", b.name, b.version, view[CONDITION_A.name], view[CONDITION_B.name])
        return self._kept(
            a, key, lambda: [(_opened(a, pair.first[0].unit), _opened(b, pair.second[0].unit)) for pair in both]
        )

    def _scores(self, view: View, paired: PairedAnswers) -> dict[str, str]:
        a, b = self._sides(view)
        key = ("scores", b.name, b.version, view[CONDITION_A.name], view[CONDITION_B.name])
        return self._kept(a, key, lambda: self._common(view, paired))

    def _common(self, view: View, paired: PairedAnswers) -> dict[str, str]:
        a, b = self._sides(view)
        sides = self._heads(paired, view)
        if sides is None or sides[0].heads != sides[1].heads:
            return {}
        found = common_statistics(*sides) if self._captured(paired, view) else {}
        return found if a is b else found | common_columns(a.keys(), b.keys())

    def _heads(self, paired: PairedAnswers, view: View) -> tuple[Trace, Trace] | None:
        """Return a unit of each side that says which heads there are: of one prompt, or any where none is captured."""
        pairs = self._captured(paired, view)
        if pairs:
            return pairs[0]
        sides = self._sides(view)
        units = [next((each.unit for each in _answers(run) if each.captured), "") for run in sides]
        return (_opened(sides[0], units[0]), _opened(sides[1], units[1])) if all(units) else None

    def _atlas(self, paired: PairedAnswers, view: View) -> Iterator[Item]:
        a, b = self._sides(view)
        traces, one = self._captured(paired, view), self._heads(paired, view)
        scores = self._scores(view, paired)
        if one is None or (one[0].heads == one[1].heads and not scores and not traces):
            yield words(
                "Heads cannot be compared: of no prompt that both sides read was anything captured on both. Capture a "
                "statistic of attention under both conditions (`capture: true` in a casebook)."
            )
            return
        try:
            check_shapes(*one)
        except UsageError as error:
            yield words(f"No atlas of differences: {error}.")
            return
        if not scores:
            yield words("Heads cannot be compared: both sides hold no statistic of each head in common.")
            return
        chosen = view[SCORE.name]
        if chosen not in scores:
            yield words(f"Both sides have no {chosen!r} of each head; they have {', '.join(scores)}.")
            return
        key = ("atlas", chosen, b.name, b.version, view[CONDITION_A.name], view[CONDITION_B.name])
        start = "import probe\nfrom probe.analyses.charts.atlas_difference import "
        sides = f"a, b = probe.open({str(a.path)!r}), probe.open({str(b.path)!r})"
        try:
            if chosen.startswith("trace."):
                name = chosen.removeprefix("trace.")
                figure = self._kept(a, key, lambda: drawn_atlas(trace_difference(name, traces)))
                units = [(first.unit, second.unit) for first, second in traces]
                pairs = f"[({_unit(a, 'a', 'x')}, {_unit(b, 'b', 'y')}) for x, y in pairs]"
                lines = f"atlas_difference\n\n{sides}\npairs = {units!r}\natlas_difference({name!r}, {pairs})"
            else:
                heads = one[0].heads
                findings = (a.keys(), b.keys())
                figure = self._kept(a, key, lambda: drawn_atlas(finding_difference(chosen, *findings, heads)))
                both = "finding_keys(a.findings()), finding_keys(b.findings())"
                keys = "from probe.telling.finding_keys import finding_keys"
                lines = f"finding_atlas\n{keys}\n\n{sides}\nfinding_atlas({chosen!r}, {both}, {heads!r})"
        except ProbeError as error:
            yield words(f"No atlas of differences: {error}.")
            return
        follow = f"/attention?run={quote(b.name, safe='')}&unit={quote(one[1].unit, safe='')}"
        yield Panel(figure, start + lines, follow=follow + "&layer={y}&head={x}")

    def _differing(self, view: View) -> Iterator[Item]:
        a, b = self._sides(view)
        records = [_record(run, view[name.name]) for run, name in ((a, CONDITION_A), (b, CONDITION_B))]
        rows = differing(*records)
        if not rows:
            yield words("Model, weights, versions, casebook and condition are the same on both sides.")
            return
        short = [tuple(_HASH.sub(lambda found: f"{found[0][:12]}…", said) for said in row) for row in rows]
        yield Grid("differing", ("what", "A", "B"), short, "What else is not the same")

    def _other(self, a: OpenedRun, condition: str) -> str:
        """Return the run that is compared where none is named: A's own, unless it has no other condition."""
        if len(_conditions(_answers(a))) > 1:
            return a.name
        return next((run.name for run in self.opened.runs() if run is not a), a.name)


def _answers(run: OpenedRun) -> list[UnitAnswer]:
    return known_answers(run.source, run.answers())


def _conditions(answers: Sequence[UnitAnswer]) -> list[str]:
    """Return the conditions, baselines first."""
    roles: dict[str, str] = {}
    for each in answers:
        roles.setdefault(each.condition, each.role)
    return sorted(roles, key=lambda name: roles[name] != "baseline")


def _fitting(a: OpenedRun, condition: str, b: OpenedRun) -> str:
    """Return B's condition where none is named: of the same name in another run, else with most prompts in common."""
    there = _conditions(_answers(b))
    if a is not b and condition in there:
        return condition
    samples = {each.sample for each in _answers(a) if each.condition == condition}
    common = {name: 0 for name in there if a is not b or name != condition}
    for each in _answers(b):
        if each.condition in common and each.sample in samples:
            common[each.condition] += 1
    return max(common, key=lambda name: min(common[name], len(samples)), default=condition)


def _said(paired: PairedAnswers, view: View) -> Iterator[Item]:
    a, b = f"{view[RUN.name]} · {view[CONDITION_A.name]}", f"{view[RUN_B.name]} · {view[CONDITION_B.name]}"
    yield words(f"A: {a}. B: {b}. {len(paired.pairs):,} prompts are paired, by name and right answer.")
    for names, what in (
        (paired.only_first, "only A read"),
        (paired.only_second, "only B read"),
        (paired.other_answer, "ask for another answer on each side"),
        (paired.left_out, "failed"),
    ):
        if names:
            more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            yield words(f"Not paired, {len(names):,} that {what}: {', '.join(names[:_MOST_NAMED])}{more}.")
    if paired.rewritten:
        yield words(
            f"{paired.rewritten:,} pairs read other tokens on each side, or withhold them: a condition that rewrites "
            "the prompt, another tokenizer or another workload. Loss of the text is not compared over these."
        )


def _rows(paired: PairedAnswers) -> Iterator[tuple[Any, ...]]:
    for quantity, (name, unit) in QUANTITIES.items():
        found = paired.difference(quantity)
        if found is None:
            yield (name, unit, *((None,) * 6), 0, "no pair has it on both sides, read alike")
            continue
        ends = (None, None) if found.interval is None else (found.interval.low, found.interval.high)
        how = "too few prompts" if found.interval is None else found.interval.method
        test = (
            "" if found.p is None else "; exact McNemar" if how.startswith("the wider") else "; sign-flip permutation"
        )
        yield name, unit, found.before, found.value, found.difference, *ends, found.p, found.n, how + test


def _imports(sides: tuple[OpenedRun, OpenedRun], lines: str) -> str:
    """Return the lines that a call begins with; a trace of its own is one answer."""
    own = any(isinstance(run.source, Trace) for run in sides)
    return f"import probe\n{lines}\n" + ("from probe.storage.unit_answer import answer_of\n" if own else "")


def _call(sides: tuple[OpenedRun, OpenedRun], view: View) -> str:
    a, b = (_source(run) for run in sides)
    return f"{a}, {view[CONDITION_A.name]!r}, {b}, {view[CONDITION_B.name]!r}"


def _source(run: OpenedRun) -> str:
    opened = f"probe.open({str(run.path)!r})"
    return f"[answer_of({opened})]" if isinstance(run.source, Trace) else opened


def _unit(run: OpenedRun, side: str, unit: str) -> str:
    return side if isinstance(run.source, Trace) else f"{side}.trace({unit})"


def _opened(run: OpenedRun, unit: str) -> Trace:
    return run.source if isinstance(run.source, Trace) else run.source.trace(unit)


def _record(run: OpenedRun, condition: str) -> dict[str, Any]:
    """Return what a run and one of its conditions say of themselves."""
    record = {key: run.record[key] for key in _RECORDS if key in run.record}
    first = next((each.unit for each in _answers(run) if each.condition == condition), "")
    trace = _opened(run, first) if first else None
    about = {} if trace is None else {"condition": trace.condition, "stage": trace.stage, **trace.facts}
    if trace is not None and not record:
        record = {"provenance": trace.provenance}
    return {**record, "this condition": about}
