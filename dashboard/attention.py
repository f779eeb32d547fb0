"""The page *Attention*: any head's map of the whole prompt, and in it, by zooming, single tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import dash_mantine_components as dmc
from dash import ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, no_update

from probe.dashboard.application.address import SHARED, Control
from probe.dashboard.application.opened import Opened
from probe.dashboard.application.page import Page
from probe.dashboard.attention_map.attention_figure import attention_figure
from probe.dashboard.attention_map.picture import Picture, chosen, picture
from probe.dashboard.attention_map.token_labels import token_labels
from probe.dashboard.attention_map.view import SCALES, WHICH, Range, View, zoomed
from probe.errors import ProbeError
from probe.storage.trace_store import Trace
from probe.visible import visible

CONTROLS = ("unit", "layer", "head", "which", "cell", "scale", "sink")
"""What can be chosen, by the part of the view that it is."""


@dataclass(frozen=True)
class Shown:
    """What the page shows for a view: a picture, or why there is none."""

    view: View
    """The view, its layer and unit filled in."""
    figure: dict[str, Any] | None
    """The figure; None where there is nothing to draw."""
    words: str
    """Which level is shown and what a cell covers, or what is wrong and what to do."""
    notes: tuple[str, ...] = ()
    """What else a reader must know."""
    labels: Mapping[str, Any] | None = None
    """Text along the axes, by axis."""
    trace: Trace | None = None
    """The trace; None where it could not be opened."""


def shown(opened: Opened, view: View) -> Shown:
    """Return what the page shows for a view. Nothing that was foreseen is raised: it is said in `words`."""
    trace = None
    try:
        trace = opened.run(view.run).trace(view.unit)
        view = chosen(trace, replace(view, unit=trace.unit))
        found = picture(trace, view)
        rows = token_labels(trace, found.queries, found.cell_tokens)
        columns = token_labels(trace, found.keys, found.cell_tokens)
        labels = {"queries": rows, "keys": columns}
        figure = attention_figure(found, view.scale, trace.sample.spans, rows, columns)
    except (ProbeError, IndexError) as error:
        return Shown(view, None, visible(str(error)), trace=trace)
    return Shown(view, figure, found.words, (*found.notes, *_told(trace, view, found)), labels, trace)


def moved(view: View, changed: str, value: Any, extent: int) -> View | None:
    """Return the view after a control or the figure has said something new; None where that changes nothing.

    `changed` is the part of the view, `zoom` (new ranges of the axes), `click` (a point to zoom in on), `out` or
    `whole`.
    """
    whole = (0, extent)
    queries, keys = view.queries or whole, view.keys or whole
    # Another prompt has other positions, another layer other heads and levels.
    if changed == "unit":
        return replace(view, unit=value, queries=None, keys=None, cell_tokens=None)
    if changed == "layer":
        return replace(view, layer=int(value), head=0, cell_tokens=None)
    if changed == "cell":
        return replace(view, cell_tokens=None if value == "auto" else int(value))
    if changed in ("head", "which", "scale", "sink"):
        new_value: Any = int(value) if changed == "head" else value
        return replace(view, **{changed: new_value})
    if changed == "whole":
        return replace(view, queries=None, keys=None, cell_tokens=None)
    if changed == "zoom":
        if value.get("xaxis.autorange") or value.get("yaxis.autorange"):
            return replace(view, queries=None, keys=None, cell_tokens=None)
        new = _ranges(value, queries, keys, extent)
        return None if new is None else _at(view, *new, extent)
    at, factor = ((queries[0] + queries[1]) / 2, (keys[0] + keys[1]) / 2), 4.0
    if changed == "click":
        point = value["points"][0]
        at, factor = (float(point["y"]), float(point["x"])), 0.25
    new = zoomed(queries, at[0], factor, extent), zoomed(keys, at[1], factor, extent)
    return None if new == (queries, keys) else _at(view, *new, extent)


class attention(Page):
    """The map of any head, from the whole prompt down to single tokens."""

    title: ClassVar[str] = "Attention"
    live: ClassVar[bool] = True
    order: ClassVar[int] = 50
    controls: ClassVar[tuple[Control, ...]] = SHARED

    def layout(self) -> Any:
        """Return controls on the left, the map on the right; a first callback fills them in."""
        units = [{"value": unit, "label": words} for unit, words in self.opened.run().units().items()]
        side = dmc.Stack(
            [
                _select("unit", "Sample and condition", units),
                dmc.Group(
                    [
                        _select("layer", "Layer", []),
                        _select("head", "Head", []),
                    ],
                    grow=True,
                    gap="xs",
                ),
                _select("cell", "Detail", []),
                _choice("which", "A cell shows", WHICH),
                _choice("scale", "Colour", SCALES),
                dmc.Switch(id="attention-sink", label="Show the sink (first keys)", checked=True),
                dmc.Group(
                    [
                        dmc.Button("Zoom out", id="attention-out", variant="default", size="xs"),
                        dmc.Button("Whole prompt", id="attention-whole", variant="default", size="xs"),
                    ],
                    gap="xs",
                    grow=True,
                ),
                html.Div(id="attention-reading", className="explorer-reading", **{"aria-live": "polite"}),
            ],
            gap="sm",
            className="explorer-side",
        )
        graph = dcc.Graph(
            id="attention-map",
            className="explorer-map",
            config={
                "displaylogo": False,
                "doubleClick": "autosize",
                "responsive": True,
                "modeBarButtonsToRemove": ["select2d", "lasso2d", "resetScale2d"],
                # Plotly's own buttons to send a figure elsewhere are never shown.
                "showSendToCloud": False,
                "showEditInChartStudio": False,
                "plotlyServerURL": "",
            },
        )
        words = html.Div(
            [
                html.P(id="attention-words", className="explorer-words", role="status"),
                html.P(id="attention-notes", className="explorer-notes"),
            ]
        )
        stores = [dcc.Store(id="attention-labels"), dcc.Store(id="attention-zoom")]
        shown = html.Section([words, graph, *stores], className="explorer-main")
        place = dcc.Location(id="attention-place", refresh=False)
        return html.Div([place, side, shown], className="explorer-page")

    def content(self, view: Any) -> list[Any]:
        """Return nothing: the page has callbacks of its own, which draw into one figure."""
        return []

    def register(self, app: Dash) -> None:
        """Add one callback for the view; in the browser, one for what is under the cursor, one that lets zooms pass."""
        controls = [Input(f"attention-{name}", "checked" if name == "sink" else "value") for name in CONTROLS]

        @app.callback(  # type: ignore[untyped-decorator]
            Output("attention-place", "search"),
            Output("attention-map", "figure"),
            Output("attention-map", "style"),
            Output("attention-words", "children"),
            Output("attention-notes", "children"),
            Output("attention-labels", "data"),
            *(Output(f"attention-{name}", "data") for name in ("layer", "head", "cell")),
            *(Output(control.component_id, control.component_property) for control in controls),
            Input("attention-place", "search"),
            *controls,
            Input("attention-zoom", "data"),
            Input("attention-map", "clickData"),
            Input("attention-out", "n_clicks"),
            Input("attention-whole", "n_clicks"),
        )
        def look(search: str | None, *values: Any) -> tuple[Any, ...]:
            names = (*CONTROLS, "zoom", "click", "out", "whole")
            return self._look(search, dict(zip(names, values, strict=True)), _changed())

        app.clientside_callback(
            ClientsideFunction("attention", "zoomed"),
            Output("attention-zoom", "data"),
            Input("attention-map", "relayoutData"),
            prevent_initial_call=True,
        )
        app.clientside_callback(
            ClientsideFunction("attention", "read"),
            Output("attention-reading", "children"),
            Input("attention-map", "hoverData"),
            Input("attention-labels", "data"),
            State("attention-map", "figure"),
        )

    def _look(self, search: str | None, values: Mapping[str, Any], changed: str | None) -> tuple[Any, ...]:
        try:
            view = View.from_query(search)
        except ProbeError as error:
            if changed is None:
                return self._out(Shown(View(), None, visible(str(error))), search, changed)
            view = View()
        if changed is not None:
            value = values[changed]
            extent = 0
            if changed in ("zoom", "click", "out"):
                try:
                    extent = self.opened.run(view.run).trace(view.unit).num_queries
                except ProbeError:
                    return (no_update,) * _NUM_OUTPUTS
            after = None if value is None else moved(view, changed, value, extent)
            if after is None:
                return (no_update,) * _NUM_OUTPUTS
            view = after
        return self._out(shown(self.opened, view), search, changed)

    def _out(self, page: Shown, search: str | None, changed: str | None) -> tuple[Any, ...]:
        view, trace = page.view, page.trace
        heads = {} if trace is None else trace.heads
        cells = [{"value": "auto", "label": "as fine as fits"}]
        if trace is not None and view.layer in heads:
            try:
                sizes = trace.levels(view.layer)
            except ProbeError:
                sizes = ()
            cells += [{"value": str(size), "label": f"{size:,} × {size:,} tokens a cell"} for size in sizes]
        known = {choice["value"] for choice in cells}
        if view.cell_tokens is not None and str(view.cell_tokens) not in known:
            cells.append(
                {"value": str(view.cell_tokens), "label": f"{view.cell_tokens:,} × {view.cell_tokens:,} tokens"}
            )
        # An address that was asked for stays as it is, or the back button would only lead forward again.
        address = search or "" if changed is None else view.to_query()
        return (
            address if address != (search or "") else no_update,
            page.figure or {"data": [], "layout": {}},
            {} if page.figure is not None else {"display": "none"},
            page.words,
            [html.Span(note + " ") for note in page.notes],
            dict(page.labels or {}),
            [{"value": str(layer), "label": str(layer)} for layer in heads],
            [{"value": str(head), "label": str(head)} for head in range(heads.get(view.layer or 0, 0))],
            cells,
            view.unit or None,
            None if view.layer is None else str(view.layer),
            str(view.head),
            view.which,
            "auto" if view.cell_tokens is None else str(view.cell_tokens),
            view.scale,
            view.sink,
        )


_NUM_OUTPUTS = 9 + len(CONTROLS)


def _changed() -> str | None:
    """Return what in the page has changed, None where it was the address or everything at once."""
    where = ctx.triggered_prop_ids
    if len(where) != 1 or "attention-place.search" in where:
        return None
    (prop,) = where
    component = prop.rpartition(".")[0]
    return "click" if component == "attention-map" else str(component.removeprefix("attention-"))


def _choice(name: str, label: str, values: tuple[str, ...]) -> Any:
    control = dmc.SegmentedControl(
        id=f"attention-{name}", data=list(values), value=values[0], fullWidth=True, size="xs"
    )
    return html.Div([dmc.Text(label, size="xs", fw=500), control], role="group", **{"aria-label": label})


def _select(name: str, label: str, data: list[dict[str, str]]) -> Any:
    return dmc.Select(id=f"attention-{name}", label=label, data=data, searchable=True, allowDeselect=False, size="xs")


def _told(trace: Trace, view: View, found: Picture) -> list[str]:
    said = []
    if trace.private:
        said.append("This trace is private: it holds no token text.")
    elif not trace.token_text:
        said.append("This trace holds no token text: tokens show as their ids.")
    bad = [
        f"{one['side']} head {one['head']} from position {one['first_position']:,} on"
        for one in trace.non_finite
        if one.get("layer") == view.layer
    ]
    if bad:
        said.append(f"Not finite in this layer: {', '.join(bad)}.")
    return said


def _ranges(value: Mapping[str, Any], queries: Range, keys: Range, extent: int) -> tuple[Range, Range] | None:
    new = []
    for axis, old in (("yaxis", queries), ("xaxis", keys)):
        ends = [value.get(f"{axis}.range[{side}]") for side in (0, 1)]
        numbers = sorted(float(end) for end in ends if isinstance(end, int | float))
        if len(numbers) < 2:
            new.append(old)
            continue
        first, last = numbers
        start = min(max(0, int(first + 0.5)), extent - 1)
        new.append((start, max(start + 1, min(extent, int(last + 1.0)))))
    return None if new == [queries, keys] else (new[0], new[1])


def _at(view: View, queries: Range, keys: Range, extent: int) -> View:
    """Return the view over these positions; a choice of detail belongs to the region that it was made for."""
    whole = (0, extent)
    return replace(
        view,
        queries=None if queries == whole else queries,
        keys=None if keys == whole else keys,
        cell_tokens=None,
    )
