"""The page *Attention*: any head's map of the whole prompt, and in it, by zooming, single tokens."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html

from probe.analyses.charts.attention_map import BESIDE, TICKED, figure_of
from probe.analyses.measures.attention_picture import Picture, attention_picture
from probe.analyses.measures.token_labels import token_labels
from probe.dashboard.application.address import SHARED, Control, View, number, write_address
from probe.dashboard.application.opened import OpenedRun
from probe.dashboard.application.page import Options, Page
from probe.dashboard.application.panel import CONFIG, Item, Panel
from probe.dashboard.attention_map.jumps import jumps
from probe.errors import ProbeError, UsageError
from probe.storage.trace_store import Run, Trace
from probe.visible import visible

CELL = Control("cell", "Detail", "auto", of=("run", "unit", "layer"))
QUERIES = Control("queries", kind="address", of=("run", "unit"))
KEYS = Control("keys", kind="address", of=("run", "unit"))
BARE = Control("bare", default="off", kind="switch")
"""Whether the map is shown alone, as in a notebook."""

_MOST_TOLD: Final = 512
_RANGE: Final = re.compile(r"([0-9]{1,10})-([0-9]{1,10})")


class attention(Page):
    """The map of any head, from the whole prompt down to single tokens."""

    title: ClassVar[str] = "Attention"
    live: ClassVar[bool] = True
    order: ClassVar[int] = 50
    controls: ClassVar[tuple[Control, ...]] = (
        *SHARED,
        CELL,
        Control("which", "A cell shows", "mean", "choice", ("mean", "max")),
        Control("scale", "Colour", "log", "choice", ("log", "linear")),
        Control("sink", "Show the sink (first keys)", "on", "switch"),
        QUERIES,
        KEYS,
        BARE,
    )

    def completed(self, view: View) -> dict[str, str]:
        """Return the view as any page does; raises UsageError also for positions that there are not."""
        full = super().completed(view)
        extent = self.trace(full).num_queries
        for name in (QUERIES.name, KEYS.name):
            if (asked := _range(full, name)) is not None and asked[1] > extent:
                raise UsageError(f"{name} {full[name]} lie outside of the prompt; it ends at {extent}")
        return full

    def options(self, view: View) -> Mapping[str, Options]:
        """Return the sizes of cells that are stored."""
        sizes: tuple[int, ...] = ()
        # A layer of which no map is stored has its exact windows all the same.
        with contextlib.suppress(ProbeError):
            sizes = self.trace(view).levels(number(view, "layer") or 0)
        known = [("auto", "as fine as fits"), *((str(size), f"{size:,} × {size:,} tokens a cell") for size in sizes)]
        return {CELL.name: known}

    def content(self, view: View) -> Sequence[Item]:
        """Return which level is shown, where one can go from here, and what is drawn into the map."""
        trace = self.trace(view)
        asked: dict[str, Any] = {
            "layer": number(view, "layer") or 0,
            "head": number(view, "head") or 0,
            "queries": _range(view, "queries"),
            "keys": _range(view, "keys"),
            "which": view["which"],
            "cell_tokens": None if view["cell"] == "auto" else number(view, "cell"),
            "sink": view["sink"] == "on",
        }
        found = attention_picture(trace, **asked)
        labels = {
            name: token_labels(trace, positions, found.cell_tokens)
            for name, positions in (("queries", found.queries), ("keys", found.keys))
        }
        few = [words if found.cell_tokens == 1 and len(words) <= TICKED else [] for words in labels.values()]
        title = f"Attention of layer {asked['layer']}, head {asked['head']}"
        figure = figure_of(found, trace.sample.spans, *few, scale=_scale(view), title=title)
        whole = [0, trace.num_queries]
        words = {
            **labels,
            "spans": [[visible(s.name), s.start, s.stop] for s in trace.sample.spans[:_MOST_TOLD] if len(s)],
            "asked": {
                "queries": asked["queries"] or whole,
                "keys": asked["keys"] or whole,
                "extent": whole[1],
                # What is looked at, wherever in it.
                "subject": write_address({**view, QUERIES.name: "", KEYS.name: "", CELL.name: ""}, self.controls),
            },
        }
        lines = _lines(self.run(view), trace, asked, view["scale"])
        notes = " ".join((*found.notes, *_told(trace, asked["layer"]), BESIDE[found.which]))
        return [
            html.P(found.words, id="attention-words", className="explorer-words", role="status"),
            html.P(notes, id="attention-notes", className="explorer-notes"),
            self._ways_on(view, trace),
            Panel(figure, lines, lambda: _table(found), graph="attention-map"),
            dcc.Store(id="attention-words-drawn", data=words),
        ]

    def layout(self) -> Any:
        """Return the page's frame with a graph that stays from view to view, so that a zoom does not flicker."""
        frame = super().layout()
        side, section = frame.children[-2:]
        side.children = [
            *side.children,
            html.Div(id="attention-reading", className="explorer-reading", **{"aria-live": "polite"}),
        ]
        graph = dcc.Graph(id="attention-map", className="explorer-map", config={**CONFIG, "doubleClick": "autosize"})
        focus = html.Div(
            graph,
            id="attention-focus",
            tabIndex="0",
            role="group",
            **{"aria-label": "Map. Arrows move, plus and minus zoom, Home shows the whole prompt"},
        )
        title, content = section.children
        heard = [dcc.Store(id=f"attention-{name}") for name in ("labels", "zoomed", "clicked", "jumped")]
        panel = html.Section(
            [content, focus, *heard], id="attention-attention_map", className="explorer-panel attention-panel"
        )
        section.children = [title, panel]
        section.className = "explorer-main attention-page"
        return frame

    def register(self, app: Dash) -> None:
        """Add the frame's callbacks; the rest happens in the browser: zooms, and what is under the cursor."""
        super().register(app)
        map_, labels = "attention-map", Input("attention-labels", "data")
        app.clientside_callback(
            ClientsideFunction("attention", "draw"),
            Output(map_, "figure"),
            Output("attention-labels", "data"),
            Input("attention-content", "children"),
        )
        for name, said in (("zoomed", "relayoutData"), ("clicked", "clickData"), ("jumped", "clickAnnotationData")):
            app.clientside_callback(
                ClientsideFunction("attention", name),
                Output(f"attention-{name}", "data"),
                Input(map_, said),
                State("attention-labels", "data"),
                prevent_initial_call=True,
            )
        app.clientside_callback(
            ClientsideFunction("attention", "read"),
            Output("attention-reading", "children"),
            Input(map_, "hoverData"),
            labels,
            State(map_, "figure"),
        )

    def _ways_on(self, view: View, trace: Trace) -> Any:
        def address(**parts: str) -> str:
            return f"/attention{write_address({**view, CELL.name: 'auto', **parts}, self.controls)}"

        zoom = html.Button("Zoom out", type="button", className="explorer-button", **{"data-map-key": "-"})
        return html.Div(
            [
                dcc.Link("Whole prompt", href=address(queries="", keys="")),
                zoom,
                jumps(trace.sample.spans, trace.num_queries, address),
                html.A("Open in the explorer", href=address(bare="off"), target="_blank", className="attention-leave"),
            ],
            className="attention-ways",
        )


def _scale(view: View) -> Any:
    return view["scale"]


def _range(view: View, name: str) -> tuple[int, int] | None:
    text = view[name]
    if not text:
        return None
    match = _RANGE.fullmatch(text)
    if match is None or int(match[1]) >= int(match[2]):
        raise UsageError(f"the address says {name}={text!r}; it is a range of positions such as 0-512")
    return int(match[1]), int(match[2])


def _lines(run: OpenedRun, trace: Trace, asked: Mapping[str, Any], scale: str) -> str:
    opened = f"probe.open({str(run.path)!r})"
    opened += f".trace({trace.unit!r})" if isinstance(run.source, Run) else ""
    given = {name: value for name, value in asked.items() if value is not None}
    said = ", ".join(f"{name}={value!r}" for name, value in (given | {"scale": scale}).items())
    return (
        "import probe\nfrom probe.analyses.charts.attention_map import attention_map\n\n"
        f"attention_map({opened}, {said})"
    )


def _table(found: Picture) -> tuple[Sequence[str], list[tuple[Any, ...]]]:
    """Return the cells as they are, a row for each row of the map: its first query, then what its keys get."""
    starts = [np.arange(*positions, found.cell_tokens).tolist() for positions in (found.queries, found.keys)]
    columns = ["query", *(f"key {start}" for start in starts[1])]
    rows = zip(starts[0], found.values.tolist(), strict=True)
    return columns, [(start, *row) for start, row in rows]


def _told(trace: Trace, layer: int) -> list[str]:
    said = []
    if trace.private:
        said.append("This trace is private: it holds no token text.")
    elif not trace.token_text:
        said.append("This trace holds no token text: tokens show as their ids.")
    bad = [
        f"{one['side']} head {one['head']} from position {one['first_position']:,} on"
        for one in trace.non_finite
        if one.get("layer") == layer
    ]
    if bad:
        said.append(f"Not finite in this layer: {', '.join(bad)}.")
    return said
