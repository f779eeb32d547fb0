"""The map of a head's attention, from the whole prompt down to single tokens, with its profiles beside it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from probe import chart
from probe.analyses.charts.attention_colours import Colours, colour_axis, colours, encoded, typed
from probe.analyses.charts.span_stripes import span_stripes
from probe.analyses.measures.attention_picture import Picture, Range, Which, attention_picture
from probe.analyses.measures.token_labels import token_labels
from probe.finding import Figure
from probe.sample import Span

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

Scale = Literal["log", "linear"]

TICKED: Final = 40
"""Tokens on an axis up to which each has its text as a tick."""

_MAP: Final = {"xaxis": [0.0, 0.82], "yaxis": [0.0, 0.79]}
_BESIDE: Final = {"xaxis2": [0.89, 1.0], "yaxis2": [0.88, 1.0]}


def attention_map(
    trace: Trace,
    *,
    layer: int,
    head: int,
    queries: Range | None = None,
    keys: Range | None = None,
    which: Which = "mean",
    cell_tokens: int | None = None,
    sink: bool = True,
    scale: Scale = "log",
) -> Figure:
    """Draw what `attention_picture` returns of the same arguments; raises as that does.

    Queries from top to bottom, keys from left to right, spans along both axes. Above: what each key gets, as the mean
    over the shown queries; to the right: what each query gives to the shown keys.
    """
    found = attention_picture(
        trace, layer, head, queries=queries, keys=keys, which=which, cell_tokens=cell_tokens, sink=sink
    )
    title = f"Attention of layer {layer}, head {head}"
    return figure_of(found, trace.sample.spans, *_few_labels(trace, found), scale=scale, title=title)


def figure_of(
    picture: Picture,
    spans: Sequence[Span] = (),
    query_labels: Sequence[str] = (),
    key_labels: Sequence[str] = (),
    *,
    scale: Scale = "log",
    title: str = "Attention",
) -> Figure:
    """Draw a picture that was read already, as `attention_map` does.

    `layout.meta` holds how a browser reads a value back from its colour. Labels are drawn as ticks.
    """
    how = colours(picture.values, scale)
    tokens = picture.cell_tokens
    x, y = ((start + (tokens - 1) / 2, tokens) for start, _ in (picture.keys, picture.queries))
    cells = {
        "type": "heatmap",
        "name": "attention",
        "z": typed(encoded(picture.values, how)),
        "x0": x[0],
        "dx": x[1],
        "y0": y[0],
        "dy": y[1],
        "hoverinfo": "none",
        "hoverongaps": True,
        # To the right of the profile, beside the map.
        **colour_axis(
            how,
            bool(np.isfinite(picture.values).all()),
            {
                "title": {"text": "probability", "side": "right", "font": {"size": 12}},
                "x": 1.01,
                "y": 0.395,
                "len": 0.83,
            },
        ),
    }
    to_keys, from_queries = picture.by_key(), picture.by_query()
    shapes, annotations = span_stripes(spans, picture.keys, picture.queries)
    layout = {
        "height": 640,
        "margin": {"l": 86, "r": 76, "t": 44, "b": 64},
        "xaxis": _axis("key position", picture.keys, tokens, key_labels, upside_down=False),
        "yaxis": _axis("query position", picture.queries, tokens, query_labels, upside_down=True),
        "xaxis2": _profile_axis("xaxis2", from_queries, how),
        "yaxis2": _profile_axis("yaxis2", to_keys, how),
        "showlegend": False,
        "dragmode": "zoom",
        "hovermode": "closest",
        "shapes": shapes,
        "annotations": annotations,
        "meta": {
            "colours": how.to_json(),
            "cell": tokens,
            "queries": list(picture.queries),
            "keys": list(picture.keys),
        },
    }
    data = [
        cells,
        _line("mean over the queries", {"y": _drawn(to_keys), "x0": x[0], "dx": x[1], "yaxis": "y2"}),
        _line("to the shown keys", {"x": _drawn(from_queries), "y0": y[0], "dy": y[1], "xaxis": "x2"}),
    ]
    return chart.figure("attention_map", title, f"{picture.words} {BESIDE[picture.which]}", data, layout)


BESIDE: Final = {
    "mean": "Above: what each key gets, the mean over the shown queries (one that cannot see it gives it nothing); to "
    "the right: what each query gives to the shown keys.",
    "max": "Above and to the right: the largest probability of each key and of each query in what is shown.",
}
"""What the profiles beside the map are, by what its cells show."""


def _few_labels(trace: Trace, found: Picture) -> tuple[list[str], list[str]]:
    """Return the tokens along the axes where they are few enough to be ticks."""
    few = [
        token_labels(trace, positions, 1) if found.cell_tokens == 1 and positions[1] - positions[0] <= TICKED else []
        for positions in (found.queries, found.keys)
    ]
    return few[0], few[1]


def _drawn(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    return typed(np.where(np.isfinite(values) & (values > 0), values, np.nan).astype(np.float32))


def _line(name: str, place: dict[str, Any]) -> dict[str, Any]:
    line = {"color": chart.ACCENT, "width": 1.4}
    return {"type": "scatter", "mode": "lines", "name": name, "line": line, "hoverinfo": "skip", **place}


def _axis(title: str, positions: Range, tokens: int, labels: Sequence[str], *, upside_down: bool) -> dict[str, Any]:
    ends = [positions[0] - 0.5, positions[1] - 0.5]
    axis = chart.axis(
        title,
        range=ends[::-1] if upside_down else ends,
        domain=_MAP["yaxis" if upside_down else "xaxis"],
        showgrid=False,
        tickformat=",d",
        nticks=8,
        constrain="domain",
        automargin=False,
    )
    if labels and tokens == 1 and len(labels) <= TICKED:
        words = [html.escape(label if len(label) <= 12 else label[:11] + "…", quote=False) for label in labels]
        axis |= {"tickvals": list(range(*positions)), "ticktext": words, "tickfont": {"size": 10}}
        axis |= {} if upside_down else {"tickangle": -60}
    return axis


def _profile_axis(name: str, values: np.ndarray[Any, Any], how: Colours) -> dict[str, Any]:
    """Return the axis of a profile's probabilities: as far as the colours reach, and to the profile's largest value.

    So that one row or column of the map, which is sharper than their mean, can be drawn on it too.
    """
    there = values[np.isfinite(values)]
    high = max(how.high, float(there.max(initial=0.0)))
    if how.scale == "log":
        kind, ends = "log", [float(np.log10(how.low)), float(np.log10(high)) + 0.1]
        marks = (10.0 ** np.arange(np.floor(ends[1]), ends[0], -2)).tolist()
    else:
        kind, ends, marks = "linear", [0.0, 1.05 * high], [0.0, high]
    ticks = {"tickvals": marks, "ticktext": [f"{mark:.2g}" for mark in marks], "tickfont": {"size": 10}}
    return chart.axis("", type=kind, range=ends, domain=_BESIDE[name], automargin=False, fixedrange=True) | ticks
