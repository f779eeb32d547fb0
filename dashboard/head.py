"""The page *Head*: one head, how far and where it looks, how it ranks among all, and what removing it did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final
from urllib.parse import urlencode

from dash import dcc, html

from probe.analyses.charts.head_profile import (
    distance_profile,
    entropy_by_position,
    masses_by_position,
    mean_distance_by_position,
    offset_profile,
    rope_shares,
)
from probe.analyses.measures.ablated_heads import AnswersByCondition, Played, effect, played
from probe.analyses.measures.one_head import MOST_RANKS, top_keys_of
from probe.analyses.measures.scores_of_heads import Head, ScoresOfHeads
from probe.dashboard.application.address import HEAD, LAYER, RUN, UNIT, Control, View, number
from probe.dashboard.application.opened import OpenedRun
from probe.dashboard.application.page import Options, Page
from probe.dashboard.application.panel import Grid, Item, Panel, words
from probe.dashboard.heads.known import heads_of, opened_unit, run_and_unit
from probe.dashboard.heads.scored import MOST_BYTES, NOTHING
from probe.errors import MissingStatistic, UsageError
from probe.finding import Figure, Finding
from probe.storage.trace_store import Trace
from probe.visible import visible

MOST_CONDITIONS: Final = 60
"""Conditions that removed the head, at most, in the table of what that did."""

_FIGURES: Final[Mapping[Callable[..., Figure], str]] = {
    distance_profile: "distance_histogram",
    offset_profile: "offset_mass",
    masses_by_position: "sink_mass",
    entropy_by_position: "entropy",
    mean_distance_by_position: "mean_distance",
    rope_shares: "rope_share",
}
"""Each figure with the statistic that it wants first."""


class head(Page):
    """One query head of one unit, and what the whole run says of it."""

    title: ClassVar[str] = "Head"
    live: ClassVar[bool] = True
    order: ClassVar[int] = 40
    controls: ClassVar[tuple[Control, ...]] = (RUN, UNIT, LAYER, HEAD)

    def completed(self, view: View) -> dict[str, str]:
        """Return the view with the first head where the address names none: of the unit, else of the run's findings.

        Raises UsageError for a layer or head that there is not; where nothing is known of any, `content` speaks.
        """
        full = super().completed({name: part for name, part in view.items() if name in (RUN.name, UNIT.name)})
        heads = self._scores(full).by_layer
        if not heads:
            return full | {LAYER.name: "", HEAD.name: ""}
        layer, which = number(view, LAYER.name), number(view, HEAD.name)
        layer = next(iter(heads)) if layer is None else layer
        if layer not in heads:
            raise UsageError(f"there is no layer {layer} with heads here; there are {', '.join(map(str, heads))}")
        which = heads[layer][0] if which is None else which
        if which not in heads[layer]:
            raise UsageError(f"layer {layer} has no head {which} here; it has {_ranges(heads[layer])}")
        return full | {LAYER.name: str(layer), HEAD.name: str(which)}

    def options(self, view: View) -> Mapping[str, Options]:
        """Return the layers that have heads, and the heads of the chosen one."""
        heads = self._scores(view).by_layer
        chosen = heads.get(number(view, LAYER.name) or 0, [])
        return {
            LAYER.name: [(str(layer), str(layer)) for layer in heads],
            HEAD.name: [(str(each), str(each)) for each in chosen],
        }

    def content(self, view: View) -> Sequence[Item]:
        """Return who the head is, its figures, its largest keys, its ranks, and what removing it did."""
        at = number(view, LAYER.name) or 0, number(view, HEAD.name) or 0
        scores, run, trace = self._scores(view), self.run(view), self.trace(view)
        if not scores.heads:
            raise MissingStatistic(NOTHING)
        items: list[Item] = [html.Section(list(self._who(view, scores, at)), className="explorer-panel")]
        there = at[1] < trace.heads.get(at[0], 0)
        if there:
            items += list(self._figures(run, trace, at))
            items += list(self._keys(run, trace, at))
        else:
            items.append(words("Nothing of this head was captured in this unit; what the run found stands below."))
        items += [self._ranks(run, trace, scores, at), *self._removed(run, at)]
        return items

    def _scores(self, view: View) -> ScoresOfHeads:
        return heads_of(self.run(view), view.get(UNIT.name, ""))

    def _who(self, view: View, scores: ScoresOfHeads, at: Head) -> Iterator[Any]:
        layer, which = at
        yield html.H2(f"Layer {layer}, head {which}")
        count, group = scores.num_heads.get(layer, 0), scores.group(at)
        said = f"One of {count} query heads of the layer." if count else "Nothing by head was captured in this unit."
        if group is None:
            said += " How many key-value heads the layer has is not on record here."
        else:
            others = [each for each in group[1] if each != which]
            shared = f"which heads {_ranges(group[1])} share" if others else "which no other head reads"
            said += f" It reads key-value head {group[0]} of {scores.kv_heads[layer]}, {shared}."
        yield words(said)
        for key, labels in scores.labels.items():
            yield words(f"{key.replace('_', ' ').replace('.', ': ')}: {labels.get(at) or 'none'}")
        unit = {RUN.name: view[RUN.name], UNIT.name: view[UNIT.name]}
        here = unit | {LAYER.name: str(layer), HEAD.name: str(which)}
        links = (
            ("Its attention map", "/attention", here),
            ("The text by what it attends to", "/text", here),
            ("Among all heads", "/head_atlas", unit | {"heads": f"{layer}:{which}"}),
        )
        parts: list[Any] = []
        for said, path, parts_of in links:
            parts += [" · " if parts else "", dcc.Link(said, href=f"{path}?{urlencode(parts_of)}")]
        yield html.P(parts, className="explorer-notes")

    def _figures(self, run: OpenedRun, trace: Trace, at: Head) -> Iterator[Item]:
        opened = opened_unit(run, trace)
        missing: list[str] = []
        shown: list[Item] = []
        for make, statistic in _FIGURES.items():
            name = make.__name__
            python = f"import probe\nfrom probe.analyses.charts.head_profile import {name}\n\n"
            python += f"{name}({opened}, layer={at[0]}, head={at[1]})"
            try:
                shown.append(Panel(make(trace, layer=at[0], head=at[1]), python))
            except MissingStatistic:
                missing.append(statistic)
        for i in range(0, len(shown), 2):
            yield shown[i : i + 2]
        if missing:
            yield words(
                f"Not captured of layer {at[0]} in this unit: {', '.join(missing)}. To see how far and how spread it "
                f"looks, add them to a casebook's stage: `capture: [{', '.join(missing)}]`, or "
                f"probe.trace(model, sample, statistics={missing!r})."
            )

    def _keys(self, run: OpenedRun, trace: Trace, at: Head) -> Iterator[Item]:
        try:
            found = top_keys_of(trace, *at)
        except MissingStatistic as error:
            yield words(f"{error}.")
            return
        rows = [
            (key.query, key.query_text, key.rank + 1, key.key, key.key_text, key.probability, ", ".join(key.spans))
            for key in found
        ]
        columns = ("query", "its_token", "rank", "key", "the_key's_token", "probability", "spans")
        python = (
            "import probe\nfrom probe.analyses.measures.one_head import top_keys_of\n\n"
            f"top_keys_of({opened_unit(run, trace)}, {at[0]}, {at[1]})"
        )
        title = "What the queries that made the answer look at most"
        yield Grid("top_keys", columns, rows, title, python, _height(len(rows)))
        yield words(
            f"At most {MOST_RANKS} keys of each query. A query is the place whose logits made a token of the answer: "
            "the prompt's last token made the first."
        )

    def _ranks(self, run: OpenedRun, trace: Trace, scores: ScoresOfHeads, at: Head) -> Item:
        index = scores.index[at]
        rows = []
        for score in scores.scores.values():
            if score.stored_bytes > MOST_BYTES:
                continue
            rank = score.rank(index)
            value = None if rank is None else float(score.values[index])
            rows.append((score.name, value, score.unit, *(rank or (None, None)), score.num_heads, score.words))
        columns = ("score", "value", "unit", "rank", "percentile", "of_heads", "what_it_is")
        python = (
            "import probe\nfrom probe.analyses.measures.scores_of_heads import scores_of_heads\n\n"
            f"scores = scores_of_heads({run_and_unit(run, trace)})\n"
            f"{{key: score.rank(scores.index[{at!r}]) for key, score in scores.scores.items()}}"
        )
        title = "How it ranks among all heads (1 has the largest value)"
        return Grid("ranks", columns, rows, title, python, _height(len(rows)))

    def _removed(self, run: OpenedRun, at: Head) -> Iterator[Item]:
        conditions = [each for each in played(run.record) if at in each.heads]
        # What acts on few heads says most of one; a control's draws come last.
        conditions.sort(key=lambda each: (each.role == "control", len(each.heads)))
        title = html.H2("What removing it did")
        named = list(_named(run, at, conditions))
        if not conditions and not named:
            said = "No condition of this run acts on it. The page Head atlas writes the casebook that removes it."
            yield html.Section([title, words(said)], className="explorer-panel")
            return
        yield html.Section([title, *named], className="explorer-panel")
        if not conditions:
            return
        answers = AnswersByCondition(run.answers())
        rows = [_effect_row(each, answers) for each in conditions[:MOST_CONDITIONS]]
        columns = (
            "condition", "stage", "role", "draw", "does", "heads", "prompts", "right", "right_untouched",
            "answer_loss_more", "low", "high",
        )  # fmt: skip
        python = (
            "import probe\nfrom probe.analyses.measures.ablated_heads import played\n\n"
            f"[each for each in played(probe.open({str(run.path)!r}).record) if {at!r} in each.heads]"
        )
        yield Grid("removed", columns, rows, "Conditions that act on it", python, _height(len(rows)))
        said = "Paired by prompt with the untouched model; answer loss in nats per token, 95 % interval over prompts. "
        said += "Where several heads are removed, this is what they do together, not this head."
        if len(conditions) > MOST_CONDITIONS:
            said += f" The first {MOST_CONDITIONS} of {len(conditions)} are listed."
        yield words(said)


def _effect_row(each: Played, answers: AnswersByCondition) -> tuple[Any, ...]:
    did = f"{each.intervention} {each.how}".strip()
    about = (each.condition, each.stage, each.role, each.draw, did, len(each.heads))
    # Of prompts that were changed too there is no untouched reading to pair with.
    found = effect(each, answers)
    if not found.num_prompts:
        return (*about, 0, None, None, None, None, None)
    interval = found.loss_interval
    ends = (interval.low, interval.high) if interval else (None, None)
    return (*about, found.num_prompts, found.accuracy, found.accuracy_without, found.loss, *ends)


def _named(run: OpenedRun, at: Head, conditions: Sequence[Played]) -> Iterator[Any]:
    """Yield the findings that rest on a treatment of this head, or suggest one, each with its claim and a link."""
    treated = {(each.stage, each.condition) for each in conditions if each.role not in ("control", "baseline")}
    units = {
        unit
        for unit, record in run.unit_records().items()
        if (str(record.get("stage")), str(record.get("condition"))) in treated
    }
    for key, finding in run.keys().items():
        how = "acted on it" if units.intersection(finding.evidence) else "suggests it" if _suggests(finding, at) else ""
        if how:
            link = dcc.Link(key.replace("_", " "), href=f"/overview?{urlencode({'run': run.name, 'finding': key})}")
            yield html.P([link, f" {how} ({finding.verdict}): {visible(finding.claim)}"], className="explorer-notes")


def _suggests(finding: Finding, at: Head) -> bool:
    for suggestion in finding.suggests:
        heads = suggestion.fields.get("heads")
        if isinstance(heads, list) and list(at) in heads and suggestion.intervention != "forget_faster":
            return True
    return False


def _ranges(heads: Sequence[int]) -> str:
    whole = len(heads) > 1 and list(heads) == list(range(heads[0], heads[-1] + 1))
    return f"{heads[0]} to {heads[-1]}" if whole else ", ".join(map(str, heads))


def _height(rows: int) -> int:
    return min(420, 110 + 42 * rows)
