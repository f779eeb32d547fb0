"""The page *State*: what a recurrent model carries along the text, where it grows out of its range, what it recalls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, cast

from dash import html

from probe.analyses.charts.recall_by_age import recall_by_age
from probe.analyses.charts.state_map import decay_profile, state_map, state_profile
from probe.analyses.charts.state_onset import state_onset
from probe.analyses.measures.state_sizes import MEANINGS, Of, captured, check, recurrent_heads, training_length
from probe.dashboard.application.address import HEAD, LAYER, RUN, UNIT, Control, View, number
from probe.dashboard.application.page import Options, Page
from probe.dashboard.application.panel import Grid, Item, Panel, words
from probe.errors import MissingStatistic
from probe.finding import Figure, Finding
from probe.storage.trace_store import Trace
from probe.telling.certainty import certainty
from probe.visible import visible

OF = Control("of", "Size", default="variance", kind="choice", options=tuple(MEANINGS))


class state(Page):
    """Size of the state by layer, head and position; decay; onset of collapse; recall by age."""

    title: ClassVar[str] = "State"
    order: ClassVar[int] = 80
    controls: ClassVar[tuple[Control, ...]] = (RUN, UNIT, LAYER, HEAD, OF)

    def completed(self, view: View) -> dict[str, str]:
        """Return the view with the first recurrent layer and its first head where the address names none.

        Raises UsageError for a layer or head without a state; of a model without any, `content` speaks.
        """
        attention = {LAYER.name: view[LAYER.name], HEAD.name: view[HEAD.name]}
        full = {name: part for name, part in view.items() if name not in attention}
        full = super().completed(full | {UNIT.name: view[UNIT.name] or self._longest(view)})
        heads = self._heads(self.trace(full))
        if not heads:
            return full | {LAYER.name: "", HEAD.name: ""}
        layer, head = number(attention, LAYER.name), number(attention, HEAD.name) or 0
        layer = next(iter(heads)) if layer is None else layer
        check(heads, layer, head)
        return full | {LAYER.name: str(layer), HEAD.name: str(head)}

    def options(self, view: View) -> Mapping[str, Options]:
        """Return the recurrent layers, and the heads of the chosen one."""
        heads = self._heads(self.trace(view))
        count = heads.get(number(view, LAYER.name) or 0, 0)
        return {
            LAYER.name: [(str(layer), str(layer)) for layer in heads],
            HEAD.name: [(str(head), str(head)) for head in range(count)],
        }

    def content(self, view: View) -> Sequence[Item]:
        """Return the maps and the profile of the unit, then what the run found; raises MissingStatistic as it reads."""
        trace, run = self.trace(view), self.run(view)
        recurrent_heads(trace)
        of = cast("Of", view[OF.name])
        layer, head = number(view, LAYER.name) or 0, number(view, HEAD.name) or 0
        opened = f"probe.open({str(run.path)!r})"
        lines = opened if isinstance(run.source, Trace) else f"{opened}.trace({trace.unit!r})"
        start = "import probe\nfrom probe.analyses.charts.state_map import {0}\n\n{0}(" + lines

        def panel(name: str, made: Figure, fields: str, follow: str = "") -> Panel:
            return Panel(made, f"{start.format(name)}{fields})", follow=follow)

        items: list[Item] = []
        there = captured(trace)
        if of in there:
            at = f"/state?of={of}&layer="
            by_layer = panel("state_map", state_map(trace, of), f", {of!r}", at + "{y}")
            by_head = panel(
                "state_map", state_map(trace, of, layer=layer), f", {of!r}, layer={layer}", f"{at}{layer}&head=" + "{y}"
            )
            items.append([by_layer, by_head])
        else:
            said = ", ".join(there) or "nothing"
            items.append(
                words(
                    f"The {MEANINGS[of]} was not captured in this unit; of its state there is {said}. To fill this: "
                    f"state_{of} in a casebook's capture, or probe.trace(…, statistics=['state_{of}'])."
                )
            )
        profiles: list[Item] = []
        if there:
            profile = state_profile(trace, layer=layer, head=head)
            profiles.append(panel("state_profile", profile, f", layer={layer}, head={head}"))
        try:
            decay = decay_profile(trace, layer=layer, head=head)
            profiles.append(panel("decay_profile", decay, f", layer={layer}, head={head}"))
        except MissingStatistic as error:
            profiles.append(words(f"{error}."))
        items.append(profiles)
        items.append(html.H2("Collapse and recall in the whole run", className="explorer-title"))
        items += self._found(view, training_length(trace))
        items.append(self._recall(view, trace, opened))
        return items

    def _found(self, view: View, trained: int | None) -> Iterator[Item]:
        run = self.run(view)
        found = {key: each for key, each in run.keys().items() if each.analysis == "state_collapse"}
        if not found:
            yield words(
                "Whether the state collapses beyond the training length was not asked: add the analysis state_collapse "
                "to a casebook that reads texts of twice the training length, as casebooks/state-collapse does."
            )
        for key, finding in found.items():
            yield html.P(visible(finding.claim), className="explorer-words")
            yield words(f"{finding.question} · {finding.verdict} · {certainty(finding)}")
            number = list(run.keys()).index(key)
            lines = f"import probe\n\nfinding = probe.open({str(run.path)!r}).findings()[{number}]\n"
            yield from _evidence(finding, lines, trained)

    def _recall(self, view: View, trace: Trace, opened: str) -> Item:
        answers = self.run(view).answers()
        trained = training_length(trace)
        try:
            made = recall_by_age(answers, trace.condition, trained=trained)
        except MissingStatistic as error:
            return words(f"Recall by age: {error}.")
        start = "import probe\nfrom probe.analyses.charts.recall_by_age import recall_by_age\n\n"
        return Panel(made, f"{start}recall_by_age({opened}, {trace.condition!r}, trained={trained})")

    def _longest(self, view: View) -> str:
        """Return the longest unit that holds something: what a state does beyond its training length matters."""
        held = [each for each in self.run(view).answers() if each.captured]
        return max(held, key=lambda each: each.length).unit if held else ""

    @staticmethod
    def _heads(trace: Trace) -> dict[int, int]:
        try:
            return recurrent_heads(trace)
        except MissingStatistic:
            return {}


def _evidence(finding: Finding, lines: str, trained: int | None) -> Iterator[Item]:
    figures: list[Item] = []
    if "onset_tokens" in finding.columns and finding.table:
        start = "from probe.analyses.charts.state_onset import state_onset\n"
        python = f"{start}{lines}state_onset(finding, trained={trained})"
        figures.append(Panel(state_onset(finding, trained=trained), python))
    figures += [Panel(figure, f"{lines}finding.figures[{i}]") for i, figure in enumerate(finding.figures)]
    for i in range(0, len(figures), 2):
        yield figures[i : i + 2]
    if finding.table:
        yield Grid("state_heads_table", finding.columns, list(finding.table), "By head", f"{lines}finding.records()")
