"""The section *What if*: a prompt typed on the spot, traced as the model is and with something done to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, ctx, dcc, html, no_update

from probe import discovery
from probe.dashboard.application.address import HEAD, LAYER, read_address
from probe.dashboard.application.panel import problem
from probe.dashboard.live.results import result
from probe.dashboard.live.session import MOST_WAITING, NAME, Live, Look
from probe.errors import ProbeError, UsageError
from probe.visible import visible
from probe.what_if import (
    MOST_CHARACTERS,
    MOST_LAYERS,
    MOST_NEW_TOKENS,
    MOST_TOKENS,
    WhatIf,
    read_heads,
    read_layers,
)

if TYPE_CHECKING:
    from probe.dashboard.application.opened import Opened
    from probe.dashboard.application.page import Page

POLL_MS: Final = 500
"""Milliseconds between looks at what is being read; nobody looks where nothing is."""

HOW: Final = (
    "To trace a prompt typed here, start the explorer on a machine that has the model: `probe view RUN --live` takes "
    "the one that the run's record names, `--live --model NAME` another."
)
"""What the section says where no model is at hand."""

_NOT_TYPED: Final = ("kvpress",)


def with_section(layout: Any, live: Live | None) -> Any:
    """Return a page's layout with the section below it."""
    return html.Div([layout, _section(live)], className="live-frame")


def register(app: Dash, live: Live, opened: Opened, made: Mapping[str, Page]) -> None:
    """Add the callbacks: ask, stop, look how it stands, and fill in the head that the page shows."""
    outputs = [
        Output("live-told", "children", allow_duplicate=True),
        Output("live-results", "children", allow_duplicate=True),
        Output("live-poll", "disabled", allow_duplicate=True),
        Output("live-stop", "disabled", allow_duplicate=True),
        Output("live-shown", "data", allow_duplicate=True),
    ]

    @app.callback(  # type: ignore[untyped-decorator]
        *outputs,
        Input("live-go", "n_clicks"),
        State("live-prompt", "value"),
        State("live-answer", "value"),
        State("live-new", "value"),
        State("live-what", "value"),
        State("live-heads", "value"),
        State("live-name", "value"),
        State("live-fields", "value"),
        State("live-layers", "value"),
        prevent_initial_call=True,
    )
    def ask(clicks: int | None, *form: Any) -> tuple[Any, ...]:
        if not clicks:
            return (no_update,) * len(outputs)
        try:
            live.ask(_asked(*form))
        except ProbeError as error:
            return problem(str(error), "Not asked"), no_update, no_update, no_update, no_update
        return _shown(live, opened, made, None)

    @app.callback(  # type: ignore[untyped-decorator]
        *outputs,
        Output("fresh", "data", allow_duplicate=True),
        Input("live-poll", "n_intervals"),
        Input("live-stop", "n_clicks"),
        State("live-shown", "data"),
        State("fresh", "data"),
        prevent_initial_call=True,
    )
    def look(_: int | None, stops: int | None, shown: int | None, version: int) -> tuple[Any, ...]:
        if ctx.triggered_id == "live-stop" and stops:
            live.stop()
        found = _shown(live, opened, made, shown)
        # A run that has grown shows in whatever page there is.
        return *found, no_update if opened.version == version else opened.version

    @app.callback(  # type: ignore[untyped-decorator]
        Output("live-heads", "value"),
        Output("live-layers", "value"),
        Output("live-filled", "data"),
        Input("place", "search"),
        State("place", "pathname"),
        State("live-heads", "value"),
        State("live-layers", "value"),
        State("live-filled", "data"),
    )
    def fill(
        search: str | None, pathname: str | None, heads: str | None, layers: str | None, filled: Sequence[str]
    ) -> tuple[Any, ...]:
        new = prefilled(made.get((pathname or "").strip("/")), search)
        # What somebody typed stays.
        own = [given or "" for given in (heads, layers)]
        values = [after if now in ("", before) else now for now, before, after in zip(own, filled, new, strict=True)]
        return *values, new

    @app.callback(  # type: ignore[untyped-decorator]
        Output("live-says", "children"), Input("live-name", "value"), prevent_initial_call=True
    )
    def describe(name: str | None) -> str:
        return discovery.describe("hooks", name) if name in discovery.names("hooks") else ""


def prefilled(page: Page | None, search: str | None) -> list[str]:
    """Return the heads and layers that an address of a page speaks of, as they are typed; empty where it does not."""
    if page is None:
        return ["", ""]
    try:
        view = page.completed(read_address(search, page.controls))
    # The page itself says what is wrong.
    except (ProbeError, IndexError):
        return ["", ""]
    layer, head = view.get(LAYER.name, ""), view.get(HEAD.name, "")
    try:
        # The heads that were chosen in the atlas; another page may mean something else by the word.
        chosen = read_heads(view.get("heads", ""))
    except UsageError:
        chosen = ()
    if not chosen:
        return [f"{layer}:{head}" if layer and head else "", layer]
    layers = sorted({each for each, _ in chosen})[:MOST_LAYERS]
    return [", ".join(f"{one}:{two}" for one, two in chosen), layer or ", ".join(map(str, layers))]


def _asked(
    prompt: Any, answer: Any, num_new: Any, what: Any, heads: Any, name: Any, fields: Any, layers: Any
) -> WhatIf:
    """Return what the form says; raises UsageError naming the field."""
    if what == "heads" and not read_heads(heads or ""):
        raise UsageError("heads: name those to ablate, as layer:head, such as 2:9, 2:13")
    if what == "other" and not name:
        raise UsageError("intervention: choose one")
    return WhatIf(
        prompt or "",
        answer=answer or "",
        num_new_tokens=num_new,
        heads=read_heads(heads or "") if what == "heads" else (),
        intervention=name if what == "other" else "",
        fields=fields or "" if what == "other" else "",
        layers=read_layers(layers or ""),
    )


def _shown(live: Live, opened: Opened, made: Mapping[str, Page], shown: int | None) -> tuple[Any, ...]:
    look = live.look()
    run = None
    if live.has_units:
        try:
            run = opened.add(live.folder, NAME)
        except ProbeError as error:
            return problem(str(error)), no_update, not look.busy, not look.busy, no_update
    last = look.finished[0].number if look.finished else 0
    results: Any = no_update if shown == last else [result(job, run, made) for job in look.finished]
    return _told(live, look), results, not look.busy, not look.busy, last


def _section(live: Live | None) -> Any:
    if live is None:
        inside: list[Any] = [html.P(HOW, className="explorer-notes")]
        return html.Details([html.Summary(html.H2("What if")), *inside], id="live", className="live")
    look = live.look()
    inside = [
        dcc.Store(id="live-filled", data=["", ""]),
        dcc.Store(id="live-shown"),
        # The first look draws what there is, and disables it where nothing is being read.
        dcc.Interval(id="live-poll", interval=POLL_MS, disabled=False),
        html.Div([_prompt(), _what(), _came(live, look)], className="live-form"),
    ]
    hint = f"trace a prompt typed here with {visible(live.model)}, as it is and with something done to it"
    summary = html.Summary([html.H2("What if"), html.Span(hint, className="explorer-notes")])
    return html.Details([summary, *inside], id="live", className="live", open=look.busy)


def _prompt() -> Any:
    stays = {"persistence": True, "persistence_type": "session"}
    return html.Div(
        [
            dmc.Textarea(
                id="live-prompt",
                label="Prompt",
                description=f"At most {MOST_CHARACTERS:,} characters and {MOST_TOKENS:,} tokens. They stay here.",
                autosize=True,
                minRows=5,
                maxRows=8,
                size="xs",
                **stays,
            ),
            html.Div(
                [
                    dmc.TextInput(id="live-answer", label="Right answer, if there is one", size="xs", **stays),
                    dmc.NumberInput(
                        id="live-new",
                        label="Tokens to decode",
                        min=1,
                        max=MOST_NEW_TOKENS,
                        value=16,
                        size="xs",
                        **stays,
                    ),
                ],
                className="live-row",
            ),
        ]
    )


def _what() -> Any:
    kinds = [("heads", "ablate heads"), ("other", "intervention"), ("none", "nothing")]
    names = [name for name in discovery.names("hooks") if name not in _NOT_TYPED]
    choice = dmc.SegmentedControl(
        id="live-what", data=[{"value": v, "label": w} for v, w in kinds], value="heads", fullWidth=True, size="xs"
    )
    return html.Div(
        [
            html.Div(
                [dmc.Text("What is done to the model", size="xs", fw=500), choice],
                role="group",
                **{"aria-label": "What is done to the model"},
            ),
            html.Div(
                dmc.TextInput(
                    id="live-heads", label="Heads to ablate, as layer:head", placeholder="2:9, 2:13", size="xs"
                ),
                className="live-if-heads",
            ),
            html.Div(
                [
                    dmc.Select(
                        id="live-name",
                        label="Intervention",
                        data=names,
                        searchable=True,
                        size="xs",
                        comboboxProps={"position": "top"},
                    ),
                    html.P(id="live-says", className="explorer-notes"),
                    dmc.Textarea(
                        id="live-fields",
                        label="Its fields, as YAML or JSON",
                        placeholder="tau: 0.8",
                        autosize=True,
                        minRows=2,
                        maxRows=6,
                        size="xs",
                    ),
                ],
                className="live-if-other",
            ),
            dmc.TextInput(
                id="live-layers",
                label="Layers to see token by token",
                description=f"Their queries and keys are kept; at most {MOST_LAYERS}.",
                size="xs",
            ),
        ]
    )


def _came(live: Live, look: Look) -> Any:
    buttons = html.Div(
        [
            html.Button("Trace", id="live-go", type="button", className="explorer-button live-go"),
            html.Button("Stop", id="live-stop", type="button", className="explorer-button", disabled=not look.busy),
        ],
        className="live-row",
    )
    return html.Div(
        [
            buttons,
            html.Div(_told(live, look), id="live-told", role="status"),
            html.Div(id="live-results", className="live-results"),
        ]
    )


def _told(live: Live, look: Look) -> Any:
    name = visible(live.model)
    waits = f" · {look.waiting} of at most {MOST_WAITING} wait" if look.waiting else ""
    job = look.running
    if job is None and look.waiting:
        return html.P(f"Starting.{waits}", className="explorer-notes")
    if job is not None and job.state != "reading":
        said = f"{job.sample}: {name} is being loaded, in a process of its own.{waits}"
        return html.P(said, className="explorer-notes")
    if job is not None:
        done, total = job.tokens
        said = (
            f"{job.sample}, {visible(job.condition) or 'before anything is read'}: {done:,} of {total:,} tokens{waits}"
        )
        bar = html.Progress(value=str(done), max=str(max(total, 1)), **{"aria-label": "Tokens read"})
        return html.Div([html.P(said, className="explorer-notes"), bar])
    if look.memory is None:
        said = f"{name} is loaded by the first prompt, into a process of its own that stays."
    else:
        said = f"{name} is loaded; its process held at most {look.memory / 2**30:.2f} GiB."
    said += (
        f" One prompt is read at a time, {MOST_WAITING} can wait. Stop ends the process; the next prompt loads anew. "
        f"What was read is the run {NAME}, in a temporary folder that goes when the explorer ends."
    )
    return html.P(said, className="explorer-notes")
