"""Figures as plotly JSON, in one style: clean, colour-blind safe, readable at 900 pixels, any text shown as it is."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from pydantic import JsonValue

from probe.finding import Figure
from probe.visible import visible

INK = "#1f2937"
QUIET = "#6b7280"
RULE = "#e5e7eb"
ACCENT = "#0b62a4"
WARN = "#d1560f"
SERIES = (ACCENT, WARN, "#0a8f6c", "#8a4fa3", "#b8860b", "#4b5563", "#56b4e9", "#c43c73")
"""Line colours in the order of use, after Okabe and Ito: told apart with any colour vision, dark enough on white."""
MASS = [[0.0, "#f5f8fb"], [0.25, "#c9dff0"], [0.5, "#7fb4d9"], [0.75, "#2f80bd"], [1.0, "#083d6e"]]
"""Colour scale of a quantity from nothing to much."""
SUCCESS = [[0.0, "#a63a0b"], [0.25, "#e08a52"], [0.5, "#f4ecd9"], [0.75, "#7fb4d9"], [1.0, "#0b4f8a"]]
"""Colour scale from failure (orange) to success (blue)."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "triangle-down", "cross")
_MOST_FRAMES = 256
MOST_CELLS = 256
"""Rows and columns that a heatmap draws at most; more are pooled before."""

Trace = dict[str, Any]


def shown(text: object) -> str:
    """Return text so that plotly shows it exactly: markup escaped, control and direction characters made visible."""

    return html.escape(visible(str(text)), quote=False)


def numbers(values: ArrayLike, digits: int = 4) -> list[Any]:
    """Return values as nested lists rounded to `digits` significant digits; what is not finite becomes None."""
    array = np.asarray(values, np.float64)
    flat = [float(f"{v:.{digits}g}") if np.isfinite(v) else None for v in array.ravel().tolist()]
    shaped = np.empty(array.shape, dtype=object)
    shaped.ravel()[:] = flat
    listed: list[Any] = shaped.tolist()
    return listed


def figure(name: str, title: str, caption: str, data: Sequence[Trace], layout: dict[str, Any]) -> Figure:
    """Return a figure in this style; `title` says what is seen, `caption` how to read it, both as plain text."""
    legend = len([trace for trace in data if trace.get("showlegend", True) and trace.get("name")]) > 1
    style: dict[str, Any] = {
        "title": {
            "text": f"<b>{shown(title)}</b>",
            "font": {"size": 16, "color": INK},
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "pad": {"l": 14},
            "y": 0.97,
            "yref": "container",
            "yanchor": "top",
        },
        "font": {"family": "Inter, 'Segoe UI', Helvetica, Arial, sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "colorway": list(SERIES),
        "margin": {"l": 72, "r": 28, "t": 84 if legend else 52, "b": 62},
        "height": 400 if legend else 370,
        "hoverlabel": {"bgcolor": "#ffffff", "bordercolor": RULE, "font": {"color": INK}, "align": "left"},
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.02,
            "yanchor": "bottom",
            "traceorder": "normal",
        },
        "showlegend": legend,
        "modebar": {"bgcolor": "rgba(255,255,255,0)", "color": "#cbd5e1", "activecolor": QUIET},
    }
    value: dict[str, JsonValue] = {"data": list(data), "layout": {**style, **layout}}
    return Figure(name=name, title=title, caption=caption, plotly=value)


def axis(title: str, **fields: Any) -> dict[str, Any]:
    """Return an axis: a title with its unit, light grid lines, no box."""
    return {
        "title": {"text": shown(title), "font": {"size": 13, "color": QUIET}, "standoff": 10},
        "gridcolor": RULE,
        "linecolor": "#9ca3af",
        "zeroline": False,
        "showline": True,
        "ticks": "outside",
        "tickcolor": "#9ca3af",
        "ticklen": 4,
        "tickfont": {"size": 12},
        "automargin": True,
        **fields,
    }


def share_axis(title: str, **fields: Any) -> dict[str, Any]:
    """Return an axis from 0 to 100 %, with room for the markers at both ends."""
    return axis(title, tickformat=".0%", range=[-0.04, 1.04], tickvals=[0, 0.2, 0.4, 0.6, 0.8, 1.0], **fields)


def _listed(x: Sequence[Any] | ArrayLike) -> list[Any]:
    values: list[Any] = np.asarray(x).tolist()
    return [round(value, 6) if isinstance(value, float) else value for value in values]


def line(
    name: str,
    x: Sequence[Any] | ArrayLike,
    y: ArrayLike,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    *,
    color: str = ACCENT,
    dash: str = "solid",
    symbol: str = "circle",
    **fields: Any,
) -> Trace:
    """Return a line with markers, and its intervals as bars where `low` and `high` are given."""
    values = np.asarray(y, np.float64)
    trace: Trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": shown(name),
        "x": _listed(x),
        "y": numbers(values),
        "line": {"color": color, "width": 2, "dash": dash},
        "marker": {"color": color, "size": 7, "symbol": symbol},
        **fields,
    }
    if low is not None and high is not None:
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": numbers(np.maximum(np.asarray(high, np.float64) - values, 0)),
            "arrayminus": numbers(np.maximum(values - np.asarray(low, np.float64), 0)),
            "color": color,
            "thickness": 1.2,
            "width": 4,
        }
    return trace


def band(x: Sequence[Any] | ArrayLike, low: ArrayLike, high: ArrayLike, *, color: str = ACCENT) -> list[Trace]:
    """Return the area between two lines, for an interval around a curve."""
    common: Trace = {"type": "scatter", "mode": "lines", "x": _listed(x), "hoverinfo": "skip", "showlegend": False}
    edge = {"width": 0, "color": color}
    return [
        {**common, "y": numbers(low), "line": edge},
        {**common, "y": numbers(high), "line": edge, "fill": "tonexty", "fillcolor": f"{color}26"},
    ]


def heatmap(
    x: Sequence[str],
    y: Sequence[str],
    z: ArrayLike,
    *,
    unit: str,
    hover: str,
    text: Sequence[Sequence[str]] | None = None,
    scale: list[list[Any]] | None = None,
    low: float = 0.0,
    high: float = 1.0,
    tickformat: str = "",
) -> Trace:
    """Return a heatmap; numbers stand in the cells where `text` is given and there are at most 16 × 16 of them."""
    values = np.asarray(z, np.float64)
    if max(values.shape) > MOST_CELLS:
        raise ValueError(f"a heatmap of {values.shape} is too large: pool it to {MOST_CELLS} × {MOST_CELLS} first")
    trace: Trace = {
        "type": "heatmap",
        "x": list(x),
        "y": list(y),
        "z": numbers(values, 3),
        "zmin": low,
        "zmax": high,
        "colorscale": scale or MASS,
        "xgap": 1,
        "ygap": 1,
        "hovertemplate": hover + "<extra></extra>",
        "hoverongaps": False,
        "colorbar": {
            "title": {"text": shown(unit), "side": "right", "font": {"size": 12, "color": QUIET}},
            "thickness": 12,
            "outlinewidth": 0,
            "tickformat": tickformat,
            "tickfont": {"size": 11},
        },
    }
    if text is not None and max(values.shape) <= 16:
        trace |= {"text": [list(row) for row in text], "texttemplate": "%{text}", "textfont": {"size": 11}}
    return trace


def atlas(
    values: ArrayLike,
    exists: ArrayLike,
    *,
    unit: str,
    high: float = 1.0,
    marked: Sequence[tuple[int, int]] = (),
) -> tuple[list[Trace], dict[str, Any]]:
    """Return data and layout of a layer × head map, layer 0 at the bottom; `marked` heads framed."""
    array = np.where(np.asarray(exists, bool), np.asarray(values, np.float64), np.nan)
    num_layers, num_heads = array.shape
    words = [
        ["" if not np.isfinite(v) else "0" if abs(v) < 0.005 else f"{v:.2f}" for v in row] for row in array.tolist()
    ]
    cells = heatmap(
        [str(h) for h in range(num_heads)],
        [str(layer) for layer in range(num_layers)],
        array,
        unit=unit,
        hover="layer %{y}, head %{x}<br>" + shown(unit) + " %{z:.3f}",
        text=words,
        high=high,
    )
    every = max(1, -(-num_heads // 32))
    rows = max(1, -(-num_layers // 32))
    layout = {
        "height": int(np.clip(160 + 34 * num_layers, 280, 760)),
        "shapes": [
            {
                "type": "rect",
                "x0": head - 0.5,
                "x1": head + 0.5,
                "y0": layer - 0.5,
                "y1": layer + 0.5,
                "line": {"color": WARN, "width": 2},
            }
            for layer, head in marked[:_MOST_FRAMES]
        ],
        "xaxis": axis(
            "head",
            type="category",
            tickvals=[str(h) for h in range(0, num_heads, every)],
            showgrid=False,
            ticks="",
            showline=False,
        ),
        "yaxis": axis(
            "layer",
            type="category",
            tickvals=[str(layer) for layer in range(0, num_layers, rows)],
            showgrid=False,
            ticks="",
            showline=False,
        ),
    }
    return [cells], layout


def note(text: str, x: Any, y: Any, **fields: Any) -> dict[str, Any]:
    """Return a label at a point of the plot, without an arrow; `text` is shown as it is."""
    return {
        "text": shown(text),
        "x": x,
        "y": y,
        "showarrow": False,
        "font": {"size": 12, "color": QUIET},
        "xanchor": "left",
        **fields,
    }


def rule(*, x: float | None = None, y: float | None = None, color: str = QUIET) -> dict[str, Any]:
    """Return a dashed line across the plot, at an x or at a y."""
    shape: dict[str, Any] = {"type": "line", "layer": "below", "line": {"color": color, "width": 1.2, "dash": "dash"}}
    if x is not None:
        return {**shape, "xref": "x", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1}
    return {**shape, "xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": y, "y1": y}
