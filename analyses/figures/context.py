"""The figures of `context_use`: loss by prefix length, gain by kind of token, loss along the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probe import chart
from probe.finding import Figure

NAMES = {"kept": "as it is", "shuffled": "what is far shuffled", "replaced": "what is far replaced"}
"""What became of the distant part, as a reader calls it, in the order of the figures."""


@dataclass(frozen=True)
class Point:
    """A value with its interval, at a place of the x axis or for a kind of token."""

    at: float | str
    value: float
    low: float
    high: float
    n: int
    """Prompts."""


def _arrays(points: Sequence[Point]) -> tuple[list[float | str], list[float], list[float], list[float]]:
    return [p.at for p in points], [p.value for p in points], [p.low for p in points], [p.high for p in points]


def losses_by_prefix(curves: Mapping[str, Sequence[Point]], near: int | None, targets: int) -> Figure:
    """Return the figure of the loss of the same words by how long a prefix stands before them."""
    data = []
    for index, (how, points) in enumerate(curves.items()):
        x, y, low, high = _arrays(points)
        data.append(
            chart.line(
                NAMES.get(how, how),
                # A little apart, so that bars do not cover each other.
                [float(at) * (1 + 0.025 * index) for at in x],
                y,
                low,
                high,
                color=chart.SERIES[index % len(chart.SERIES)],
                dash=chart.DASHES[index % len(chart.DASHES)],
                symbol=chart.SYMBOLS[index % len(chart.SYMBOLS)],
                text=[f"{at:g} tokens, {p.n} prompts" for at, p in zip(x, points, strict=True)],
                hovertemplate="%{text}: %{y:.3f} nats<extra></extra>",
            )
        )
    ticks = sorted({float(p.at) for points in curves.values() for p in points})
    layout = {
        "xaxis": chart.axis(
            "tokens of the prompt before them", type="log", tickvals=ticks, ticktext=[f"{at:,.0f}" for at in ticks]
        ),
        "yaxis": chart.axis(f"loss of the next {targets} tokens, nats a token"),
        "shapes": [] if near is None else [chart.rule(x=float(near))],
    }
    line = "" if near is None else " What stands right of the dashed line is far: that part is shuffled or replaced."
    return chart.figure(
        "losses_by_prefix",
        "Loss of the same words by how much text stands before them",
        f"Means over prompts with 95 % intervals, which hold how much prompts differ; differences are paired.{line}",
        data,
        layout,
    )


def gains_by_kind(gains: Mapping[str, Sequence[Point]]) -> Figure:
    """Return the figure of what the distant part takes off the loss of each kind of token."""
    data = []
    for index, (how, points) in enumerate(gains.items()):
        x, y, low, high = _arrays(points)
        data.append(
            chart.line(
                NAMES.get(how, how),
                x,
                y,
                low,
                high,
                color=chart.SERIES[index % len(chart.SERIES)],
                symbol=chart.SYMBOLS[index % len(chart.SYMBOLS)],
                mode="markers",
                text=[f"{p.n} prompts" for p in points],
                hovertemplate="%{x}: %{y:.3f} nats, %{text}<extra></extra>",
            )
        )
    return chart.figure(
        "gains_by_kind",
        "What the distant part of the prefix takes off the loss, by kind of token",
        "Loss after the near part alone less loss after the whole prefix, with 95 % intervals over prompts; above 0 "
        "the distant part helps.",
        data,
        {
            "xaxis": chart.axis("", type="category"),
            "yaxis": chart.axis("gain, nats a token"),
            "shapes": [chart.rule(y=0)],
        },
    )


def losses_along(points: Sequence[Point]) -> Figure:
    """Return the figure of the loss along the longest prompt."""
    x, y, low, high = _arrays(points)
    data = [
        chart.line(
            "loss",
            x,
            y,
            low,
            high,
            hovertemplate="from token %{x:.0f} on: %{y:.3f} nats<extra></extra>",
            showlegend=False,
        )
    ]
    ticks = np.unique(np.array(x, np.float64)).tolist()
    return chart.figure(
        "losses_along",
        "Loss along the prompt itself",
        "Bins twice as long as the one before; means over prompts with 95 % intervals. Other words stand at each "
        "place, so what differs is not the prefix alone: the first figure has the same words throughout.",
        data,
        {
            "xaxis": chart.axis(
                "token of the prompt (beginning of the bin)",
                type="log",
                tickvals=ticks,
                ticktext=[f"{at:g}" for at in ticks],
            ),
            "yaxis": chart.axis("loss, nats a token"),
        },
    )
