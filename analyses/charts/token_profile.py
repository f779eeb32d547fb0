"""One number a token along the whole prompt, with its spans: where in the context it lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from probe import chart
from probe.analyses.measures.token_values import By, TokenValues, token_values
from probe.finding import Figure

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

MOST_POINTS = 1_000
"""Points of a line, at most; a longer prompt is drawn as the mean and the largest of as many stretches."""
_MOST_SPANS = 64
_FEW_SPANS = 8


def token_profile(
    trace: Trace,
    by: By = "received_mass",
    *,
    layer: int | None = None,
    head: int | None = None,
    query: int | None = None,
    per_query: bool = False,
    shorter: Trace | None = None,
    scale: Literal["log", "linear"] = "log",
) -> Figure:
    """Draw what `token_values` returns of the same arguments along the prompt; raises as that does.

    Values below zero have no logarithm: such a line is linear, whatever `scale` says.
    """
    found = token_values(trace, by, layer=layer, head=head, query=query, per_query=per_query, shorter=shorter)
    return profile_of(trace, found, scale)


def profile_of(trace: Trace, found: TokenValues, scale: Literal["log", "linear"] = "log") -> Figure:
    """Draw values that were read already, as `token_profile` does."""
    data, pooled = _lines(found)
    linear = scale == "linear" or not np.nanmin(found.values, initial=np.inf) >= 0
    caption = found.words
    if pooled > 1:
        caption += f" Lines: mean and largest of {pooled:,} tokens each."
    spans = trace.sample.spans[:_MOST_SPANS]
    layout: dict[str, Any] = {
        "height": 128,
        "margin": {"l": 64, "r": 16, "t": 60, "b": 26},
        "xaxis": chart.axis("", range=[-0.5, found.values.size - 0.5]),
        "yaxis": chart.axis(found.unit, nticks=4, **({} if linear else _log(found.values))),
        "shapes": [
            {
                "type": "rect",
                "xref": "x",
                "yref": "paper",
                "x0": span.start - 0.5,
                "x1": span.stop - 0.5,
                "y0": 0,
                "y1": 1,
                "line": {"width": 0 if len(spans) > _FEW_SPANS else 1, "color": chart.WARN},
                "fillcolor": f"{chart.WARN}1a",
                "layer": "below",
            }
            for span in spans
        ],
    }
    return chart.figure("along_the_prompt", f"{found.name} along the prompt".capitalize(), caption, data, layout)


def _lines(found: TokenValues) -> tuple[list[dict[str, Any]], int]:
    values = found.values
    pooled = -(-values.size // MOST_POINTS) if values.size > MOST_POINTS else 1
    if pooled == 1:
        return [chart.line(found.name, np.arange(values.size), values, mode="lines")], 1
    starts = np.arange(0, values.size, pooled)
    there = np.isfinite(values)
    count = np.add.reduceat(there, starts)
    total = np.add.reduceat(np.where(there, values, 0.0), starts)
    mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    most = np.maximum.reduceat(np.where(there, values, -np.inf), starts)
    largest = chart.line("largest", starts, _finite(most), color=chart.WARN, dash="dot", mode="lines")
    return [chart.line("mean", starts, mean, mode="lines"), largest], pooled


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.where(np.isfinite(values), values, np.nan))


def _log(values: NDArray[np.float64]) -> dict[str, Any]:
    there = values[np.isfinite(values) & (values > 0)]
    decades = {"dtick": 1 if there.size and there.max() > 100 * there.min() else "D2"}
    return {"type": "log", "exponentformat": "power", **decades}
