"""The page *Text*: the prompt itself, at any length, coloured by what its tokens get, do or cost."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, ClassVar, Final

import numpy as np
from dash import ClientsideFunction, Dash, Input, Output, dcc, html
from flask import Response, request

from probe.analyses.charts.token_profile import profile_of
from probe.analyses.measures.colour_steps import NUM_STEPS
from probe.dashboard.application.address import HEAD, LAYER, SHARED, Control, View, number, read_address, write_address
from probe.dashboard.application.opened import Opened
from probe.dashboard.application.page import Options, Page
from probe.dashboard.application.panel import Item, Panel, problem, words
from probe.dashboard.reading.colours import COLOURS, Colouring, Colourings, preferred
from probe.dashboard.reading.prompt import MOST_HITS, MOST_SPANS, MOST_TOKENS, Hits, Prompt
from probe.dashboard.reading.reader import reader
from probe.errors import ProbeError, UsageError
from probe.storage.trace_store import Trace

MOST_SEARCHED: Final = 200
"""Characters of a text that is looked for, at most."""

_LARGEST: Final = 6
_MOST_PROMPTS: Final = 4
_MOST_ROWS: Final = 200_000

COLOUR = Control("colour", "Coloured by")
QUERY = Control("query")
AT = Control("at")
FIND = Control("find", "Find (press /)", kind="text")


class text(Page):
    """The prompt of a unit and what was answered; a token that is chosen is the query."""

    title: ClassVar[str] = "Text"
    live: ClassVar[bool] = True
    order: ClassVar[int] = 60
    controls: ClassVar[tuple[Control, ...]] = (
        *SHARED,
        COLOUR,
        Control("heads", "Received in the", "head", "choice", ("head", "layer")),
        Control("scale", "Scale", "log", "choice", ("log", "linear")),
        Control("numbers", "Numbers under the tokens", "off", "switch"),
        Control("profile", "Profile along the prompt", "on", "switch"),
        FIND,
        QUERY,
        AT,
    )

    def __init__(self, opened: Opened) -> None:
        super().__init__(opened)
        self._colourings = Colourings()
        self._prompts: OrderedDict[tuple[Any, ...], Prompt] = OrderedDict()
        self._lock = Lock()

    def completed(self, view: View) -> dict[str, str]:
        """Return the view with its unit, head, colour and query filled in; a unit without heads has none.

        A query that is not there, such as one of another prompt, is the last of this prompt.
        """
        trace = self.trace(view)
        if trace.heads:
            full = super().completed(view)
        else:
            rest = {name: value for name, value in view.items() if name not in (LAYER.name, HEAD.name)}
            full = super().completed(rest) | {LAYER.name: "", HEAD.name: ""}
        full[COLOUR.name] = full[COLOUR.name] or preferred(trace)
        if full[COLOUR.name] not in COLOURS:
            raise UsageError(f"tokens are not coloured by {full[COLOUR.name]!r}; there are {', '.join(COLOURS)}")
        query = number(full, QUERY.name)
        if query is None and full[COLOUR.name] == "query":
            query = max(0, len(trace.sample) - 1)
        full[QUERY.name] = "" if query is None else str(min(query, max(0, self._prompt(full).num_positions - 1)))
        number(full, AT.name)
        if len(full[FIND.name]) > MOST_SEARCHED:
            raise UsageError(f"a text to find has at most {MOST_SEARCHED} characters")
        return full

    def options(self, view: View) -> Mapping[str, Options]:
        """Return what tokens can be coloured by."""
        return {COLOUR.name: list(COLOURS.items())}

    def content(self, view: View) -> Sequence[Item]:
        """Return what stands above the text, and what the browser asks the text with."""
        run, trace, prompt = self.run(view), self.trace(view), self._prompt(view)
        items: list[Item] = []
        colouring = None
        try:
            colouring = self._colourings.of(run, trace, view)
        except (ProbeError, IndexError) as error:
            # The text is there all the same.
            items.append(problem(str(error), "Nothing to colour by"))
        try:
            found = prompt.find(view[FIND.name]) if view[FIND.name] else None
        except ProbeError as error:
            items.append(problem(str(error), "Nothing to find"))
            found = None
        if colouring is not None:
            items.append(html.Div([_legend(colouring), _largest(prompt, colouring)], className="reader-key"))
            shown = view["profile"] == "on"
            items.append(self._panel(view, trace, prompt, colouring) if shown else words(colouring.values.words))
        items += [words(said) for said in _told(trace, prompt)]
        items.append(dcc.Store(id="text-asked", data=self._asked(view, prompt, colouring, found)))
        return items

    def layout(self) -> Any:
        """Return the page's frame, below what the view says of the text the text itself, which the browser fills."""
        frame = super().layout()
        section = frame.children[-1]
        section.children = [*section.children, reader()]
        section.className = "explorer-main reader-page"
        return frame

    def register(self, app: Dash) -> None:
        """Add the callbacks, and what the browser asks for as it is scrolled: tokens, and their values, by range."""
        super().register(app)
        app.clientside_callback(
            ClientsideFunction("text", "show"), Output("text-shown", "data"), Input("text-content", "children")
        )

        @app.server.route("/tokens/<what>/<int:start>/<int:stop>")  # type: ignore[untyped-decorator]
        def tokens(what: str, start: int, stop: int) -> Response:
            try:
                found: Any = self.tokens(what, start, stop, request.query_string.decode("utf-8", "replace"))
                status = 200
            except (ProbeError, IndexError) as error:
                found, status = {"problem": str(error)}, 400
            said = json.dumps(found, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            return Response(said, status, mimetype="application/json", headers={"Cache-Control": "no-store"})

    def tokens(self, what: str, start: int, stop: int, search: str) -> dict[str, Any]:
        """Return what a range of slots reads as (`words`), or its values and how far along the scale (`values`).

        Raises UsageError for a range that is none, or of more than `MOST_TOKENS`, and as the page does.
        """
        if what not in ("words", "values"):
            raise UsageError(f"of tokens there are words and values, not {what!r}")
        view = self.completed(read_address(search, self.controls))
        prompt = self._prompt(view)
        if not 0 <= start < stop <= prompt.size or stop - start > MOST_TOKENS:
            raise UsageError(f"tokens {start}-{stop}: expected at most {MOST_TOKENS:,} between 0 and {prompt.size:,}")
        if what == "words":
            return {"words": prompt.words(start, stop), "ids": prompt.ids[start:stop].tolist()}
        colouring = self._colourings.of(self.run(view), self.trace(view), view)
        if colouring is None:
            raise UsageError("the tokens are coloured by nothing")
        values = colouring.by_slot[start:stop]
        shares = np.round(colouring.steps.shares(values) * 1000)
        return {
            "values": [float(f"{value:.4g}") if np.isfinite(value) else None for value in values.tolist()],
            "shares": [int(share) if np.isfinite(share) else None for share in shares.tolist()],
        }

    def _prompt(self, view: View) -> Prompt:
        run, trace = self.run(view), self.trace(view)
        key = (run.name, run.version, trace.unit)
        with self._lock:
            if key not in self._prompts:
                self._prompts[key] = Prompt(trace)
            self._prompts.move_to_end(key)
            while len(self._prompts) > _MOST_PROMPTS:
                self._prompts.popitem(last=False)
            return self._prompts[key]

    def _panel(self, view: View, trace: Trace, prompt: Prompt, colouring: Colouring) -> Panel:
        figure = profile_of(trace, colouring.values, "linear" if view["scale"] == "linear" else "log")
        lines = colouring.lines.replace(
            "import probe\n", "import probe\nfrom probe.analyses.charts.token_profile import token_profile\n", 1
        )
        python = f"{lines}\ntoken_profile(trace, {colouring.arguments}, scale={view['scale']!r})"
        here = write_address({**view, AT.name: ""}, self.controls)
        # Of a longer prompt what is drawn: the lines say how to have every token.
        table = (lambda: _table(prompt, colouring)) if prompt.size <= _MOST_ROWS else None
        return Panel(figure, python, table, f"/text{here}{'&' if here else '?'}at={{x}}")

    def _asked(self, view: View, prompt: Prompt, colouring: Colouring | None, found: Hits | None) -> dict[str, Any]:
        unit = {name: view[name] for name in ("run", "unit")}
        which = {**view, AT.name: "", FIND.name: "", "numbers": "off", "profile": "on"}
        if view[COLOUR.name] != "query":
            which[QUERY.name] = ""
        spans = prompt.spans()
        return {
            "unit": write_address(unit, self.controls),
            "values": None if colouring is None else write_address(which, self.controls),
            "name": "" if colouring is None else colouring.values.name,
            "kind": "" if colouring is None else colouring.steps.kind,
            "steps": NUM_STEPS,
            "sections": [[each.name, each.start, each.stop, each.label] for each in prompt.sections],
            "spans": spans,
            "withheld": prompt.withheld,
            "query": number(view, QUERY.name),
            "at": number(view, AT.name),
            "numbers": view["numbers"] == "on",
            "find": view[FIND.name],
            "hits": None if found is None else [list(place) for place in found.places],
            "numHits": 0 if found is None else found.number,
            "mostHits": MOST_HITS,
        }


def _legend(colouring: Colouring) -> Any:
    steps = colouring.steps
    edges = [f"{edge:.3g}".replace("-", "−") for edge in steps.edges()]
    said = [f"to {edges[1]}", *(f"from {edge}" for edge in edges[1:-1])]
    kind = "signed" if steps.kind == "signed" else "mass"
    swatches = [html.Li(each, className=f"reader-{kind}-{i}") for i, each in enumerate(said)]
    name = f"{colouring.values.name} ({colouring.values.unit}), {steps.kind}, to {edges[-1]}"
    return html.Div(
        [html.Span(name), html.Ul(swatches, **{"aria-label": f"Colours: {name}"})], className="reader-legend"
    )


def _largest(prompt: Prompt, colouring: Colouring) -> Any:
    chosen = colouring.values.largest(_LARGEST)
    buttons = []
    for at, value in chosen:
        (word,) = prompt.words(at, at + 1)
        buttons.append(
            html.Button(
                [html.Bdi(word), f" {at:,}: {value:.3g}"],
                type="button",
                className="explorer-button",
                **{"data-jump": str(at), "aria-label": f"Go to position {at:,}: {word}, {value:.3g}"},
            )
        )
    return html.Div([html.Span("Largest:"), *buttons], className="reader-largest", role="group")


def _told(trace: Trace, prompt: Prompt) -> list[str]:
    said = []
    outcome = trace.outcome
    if outcome is not None and outcome.failed:
        said.append(f"This unit failed: {outcome.failed}.")
    told = []
    if outcome is not None and outcome.correct is not None:
        told.append(f"The answer is {'right' if outcome.correct else 'wrong'}")
    if outcome is not None and outcome.answer_loss is not None:
        told.append(f"the right answer costs {outcome.answer_loss:.3g} nats a token")
    if outcome is not None and outcome.text_loss is not None:
        told.append(f"the prompt {outcome.text_loss:.3g}")
    if told:
        line = "; ".join(told)
        said.append(f"{line[0].upper()}{line[1:]}.")
    if prompt.withheld:
        said.append(f"No words here: {prompt.withheld}.")
    if len(trace.sample.spans) > MOST_SPANS:
        said.append(f"Of {len(trace.sample.spans):,} spans the first {MOST_SPANS:,} are outlined.")
    return said


def _table(prompt: Prompt, colouring: Colouring) -> tuple[Sequence[str], list[tuple[Any, ...]]]:
    """Return every token with its value: the table behind the colours."""
    rows: list[tuple[Any, ...]] = []
    for section in prompt.sections:
        for first in range(section.start, section.stop, MOST_TOKENS):
            last = min(first + MOST_TOKENS, section.stop)
            at = range(first - section.start, last - section.start) if section.name == "answer" else range(first, last)
            values = [value if np.isfinite(value) else None for value in colouring.by_slot[first:last].tolist()]
            ids = [None if token < 0 else token for token in prompt.ids[first:last].tolist()]
            rows += zip([section.name] * (last - first), at, ids, prompt.words(first, last), values, strict=True)
    return ("part", "position", "token_id", "text", colouring.values.name.replace(" ", "_")), rows
