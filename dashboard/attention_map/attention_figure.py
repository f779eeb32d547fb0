"""A picture of attention as a plotly figure: typed arrays in place of lists, colours that any eye can rank."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from probe.dashboard.attention_map.picture import Picture
from probe.dashboard.attention_map.view import Range
from probe.sample import Span
from probe.visible import visible

EXACT_CELLS: Final = 256
"""Rows and columns up to which numbers go to the browser as float32; beyond, as one of 254 steps of colour."""

DECADES: Final = 5
"""Powers of ten below the largest value that the logarithmic colours reach."""

MOST_SPANS: Final = 64
"""Spans drawn on an axis, at most."""

TICKED: Final = 40
"""Tokens on an axis up to which each has its text as a tick."""

_MOST_TOLD: Final = 512
_NAME: Final = 24
_STEPS: Final = 254
_BAD: Final = 255
# viridis: ranked alike by every kind of colour vision, and in grey.
_COLOURS: Final = (
    "#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725",
)  # fmt: skip
_SPANS: Final = ("#d1560f", "#0b8fd6", "#0a8f6c", "#b45fd0", "#b8860b", "#c43c73")


@dataclass(frozen=True)
class Colours:
    """How a value becomes a colour, and what a browser needs to read the value back."""

    scale: str
    """`log` or `linear`."""
    low: float
    """Value of the darkest colour."""
    high: float
    """Value of the brightest colour."""
    steps: bool
    """Whether values go over as steps of colour: 1 to 254, 0 for nothing, 255 for what is not finite."""

    def to_json(self) -> dict[str, Any]:
        """Return it for the browser."""
        return {"scale": self.scale, "low": self.low, "high": self.high, "steps": self.steps, "last": _STEPS}


def colours(picture: Picture, scale: str) -> Colours:
    """Choose the range of colours by the largest value in the picture."""
    values = picture.values
    finite = values[np.isfinite(values)]
    high = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    low = high * 10.0**-DECADES if scale == "log" else 0.0
    return Colours(scale, low, high, max(values.shape) > EXACT_CELLS or finite.size < values.size)


def encoded(values: np.ndarray[Any, Any], how: Colours) -> np.ndarray[Any, Any]:
    """Return what the browser gets: float32 (the values, or their log10) or uint8 steps."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if not how.steps:
            shown = np.log10(values) if how.scale == "log" else np.where(values == 0, np.nan, values)
            return np.where(np.isfinite(shown), shown, np.nan).astype(np.float32)
        if how.scale == "log":
            share = np.log(values / np.float32(how.low)) / np.float32(np.log(how.high / how.low))
        else:
            share = values / np.float32(how.high)
        steps = 1 + np.rint(np.clip(share, 0, 1) * (_STEPS - 1))
    steps = np.where(values == 0, 0, steps)
    return np.asarray(np.where(np.isfinite(values), steps, _BAD), np.uint8)


def typed(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return an array as plotly.js takes it without a list of numbers."""
    kind = {"float32": "f4", "uint8": "u1"}[values.dtype.name]
    data = base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
    return {"dtype": kind, "bdata": data, "shape": ", ".join(map(str, values.shape))}


def attention_figure(
    picture: Picture,
    scale: str,
    spans: Sequence[Span] = (),
    query_labels: Sequence[str] = (),
    key_labels: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the figure: queries from top to bottom, keys from left to right, spans along both axes.

    `meta` holds how a browser reads a value back from its colour. Labels are drawn as ticks where few tokens are shown.
    """
    how = colours(picture, scale)
    tokens = picture.cell_tokens
    trace = {
        "type": "heatmap",
        "z": typed(encoded(picture.values, how)),
        "x0": picture.keys[0] + (tokens - 1) / 2,
        "dx": tokens,
        "y0": picture.queries[0] + (tokens - 1) / 2,
        "dy": tokens,
        "hoverinfo": "none",
        "hoverongaps": True,
        **_colour_axis(how, bool(np.isfinite(picture.values).all())),
    }
    shapes, annotations = _drawn(spans, picture)
    layout = {
        "margin": {"l": 86, "r": 8, "t": 66, "b": 64},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "Inter, 'Segoe UI', Helvetica, Arial, sans-serif", "size": 12},
        "xaxis": _axis("key position", picture.keys, tokens, key_labels, upside_down=False),
        "yaxis": _axis("query position", picture.queries, tokens, query_labels, upside_down=True),
        "dragmode": "zoom",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#8a93a0", "activecolor": "#4b5563"},
        "shapes": shapes,
        "annotations": annotations,
        "meta": {
            "colours": how.to_json(),
            "cell": tokens,
            "queries": list(picture.queries),
            "keys": list(picture.keys),
            "spans": [[visible(span.name), span.start, span.stop] for span in spans[:_MOST_TOLD] if len(span)],
        },
    }
    return {"data": [trace], "layout": layout}


def _colour_axis(how: Colours, all_finite: bool) -> dict[str, Any]:
    bar: dict[str, Any] = {
        "title": {"text": "probability", "side": "right"},
        "thickness": 12,
        "outlinewidth": 0,
        "len": 1,
        # Beyond the stripes of the queries' spans and their names.
        "x": 1.05,
    }
    if how.scale == "log":
        ends = np.log10([how.low, how.high])
        marks = np.arange(np.ceil(ends[0]), np.floor(ends[1]) + 1)
        at, said = marks, [f"{10.0**mark:.0e}" if mark < -3 else f"{10.0**mark:g}" for mark in marks]
    else:
        ends = np.array([0.0, how.high])
        at = np.linspace(0, how.high, 5)
        said = [f"{value:.3g}" for value in at]
    scale: list[list[Any]] = [[index / (len(_COLOURS) - 1), colour] for index, colour in enumerate(_COLOURS)]
    if not how.steps:
        bar |= {"tickvals": at.tolist(), "ticktext": said}
        return {"zmin": float(ends[0]), "zmax": float(ends[1]), "colorscale": scale, "colorbar": bar}
    places = 1 + (at - ends[0]) / (ends[1] - ends[0]) * (_STEPS - 1)
    top = _BAD if not all_finite else _STEPS
    bar |= {"tickvals": [*places.tolist(), *([] if all_finite else [_BAD])]}
    bar |= {"ticktext": [*said, *([] if all_finite else ["not finite"])]}
    # Nothing at all is transparent; what is not finite has a colour that the scale has not.
    inner = [[(0.5 + share * (_STEPS - 0.5)) / top, colour] for share, colour in scale]
    outer = [] if all_finite else [[(_STEPS + 0.5) / top, "#d01c8b"], [1.0, "#d01c8b"]]
    if not all_finite:
        inner.append([(_STEPS + 0.5) / top, _COLOURS[-1]])
    scale = [[0.0, "rgba(0,0,0,0)"], [0.5 / top, "rgba(0,0,0,0)"], *inner, *outer]
    return {"zmin": 0, "zmax": top, "colorscale": scale, "colorbar": bar}


def _axis(title: str, positions: Range, tokens: int, labels: Sequence[str], *, upside_down: bool) -> dict[str, Any]:
    ends = [positions[0] - 0.5, positions[1] - 0.5]
    axis: dict[str, Any] = {
        "title": {"text": title, "standoff": 8},
        "range": ends[::-1] if upside_down else ends,
        "showgrid": False,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "tickformat": ",d",
        "nticks": 8,
        "constrain": "domain",
    }
    if labels and tokens == 1 and len(labels) <= TICKED:
        words = [html.escape(label if len(label) <= 12 else label[:11] + "…", quote=False) for label in labels]
        axis |= {"tickvals": list(range(*positions)), "ticktext": words, "tickfont": {"size": 10}}
        axis |= {} if upside_down else {"tickangle": -60}
    return axis


def _drawn(spans: Sequence[Span], picture: Picture) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a stripe for each span on both axes, and its name where there is room for one.

    A stripe is at least as wide as can be seen. Names that have no room are read under the cursor.
    """
    shapes: list[dict[str, Any]] = []
    names: list[dict[str, Any]] = []
    for side, positions in (("x", picture.keys), ("y", picture.queries)):
        taken = [-1.0, -1.0]
        for index, span in sorted(enumerate(spans), key=lambda each: each[1].start):
            if (
                not len(span)
                or span.start >= positions[1]
                or span.stop <= positions[0]
                or len(shapes) >= 2 * MOST_SPANS
            ):
                continue
            start, stop = max(span.start, positions[0]) - 0.5, min(span.stop, positions[1]) - 0.5
            ink = _SPANS[index % len(_SPANS)]
            along = {f"{side}0": start, f"{side}1": stop, f"{side}ref": side}
            # Above the map for keys, to its right for queries, in shares of the plot.
            across: dict[str, Any] = {"yref": "paper", "y0": 1.005, "y1": 1.02}
            if side == "y":
                across = {"xref": "paper", "x0": 1.004, "x1": 1.014}
            line = {"width": 1.5, "color": ink}
            shapes.append({"type": "rect", **along, **across, "fillcolor": ink, "line": line, "layer": "above"})
            middle = (start + stop) / 2
            share = (middle - positions[0]) / (positions[1] - positions[0])
            half = min(len(span.name), _NAME) * (0.0045 if side == "x" else 0.006)
            row = next((row for row, end in enumerate(taken) if share - half > end), None)
            if row is None:
                continue
            taken[row] = share + half
            place: dict[str, Any] = {
                "x": middle,
                "y": 1.02 + 0.024 * row,
                "xref": "x",
                "yref": "paper",
                "yanchor": "bottom",
            }
            if side == "y":
                place = {"x": 1.016 + 0.018 * row, "y": middle, "xref": "paper", "yref": "y", "xanchor": "left"}
                place["textangle"] = 90
            short = visible(span.name if len(span.name) <= _NAME else span.name[: _NAME - 1] + "…")
            text = html.escape(short, quote=False)
            names.append({**place, "text": text, "showarrow": False, "font": {"size": 11, "color": ink}})
    return shapes, names
