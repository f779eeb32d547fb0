"""The figure of `effective_length`: right answers by length, beside both controls and where the heads look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from probe import chart
from probe.finding import Figure, Interval
from probe.intervals import clopper_pearson

NAMES = {"baseline": "whole text", "gold_only": "needle sentence alone", "needle_absent": "needle left out"}
"""Roles in the order of the table, as a reader calls them."""


@dataclass(frozen=True)
class Rate:
    """Right answers of prompts asked, at one length under one role."""

    right: int
    n: int

    @property
    def share(self) -> float:
        return self.right / self.n

    @property
    def interval(self) -> Interval:
        interval = clopper_pearson(self.right, self.n)
        assert interval is not None
        return interval

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.right + other.right, self.n + other.n)


def length_figure(
    rates: Mapping[str, Mapping[int, Rate]],
    hits: Mapping[int, tuple[float, float, float]] | None,
    title: str,
    threshold: float,
) -> Figure:
    styles = {
        "baseline": (chart.ACCENT, "solid", "circle"),
        "gold_only": (chart.SERIES[2], "dot", "square"),
        "needle_absent": (chart.QUIET, "dash", "diamond"),
    }
    data: list[chart.Trace] = []
    lengths = sorted({at for by_length in rates.values() for at in by_length})
    # Positions in order rather than on a logarithm: lengths are seldom evenly spaced, and bars must not overlap.
    at_x = {at: float(index) for index, at in enumerate(lengths)}
    shift = {"baseline": 0.0, "gold_only": -0.05, "needle_absent": 0.05, "hits": 0.1}
    for role, by_length in rates.items():
        if not by_length:
            continue
        color, dash, symbol = styles[role]
        data.append(
            chart.line(
                NAMES[role],
                [at_x[at] + shift[role] for at in by_length],
                [rate.share for rate in by_length.values()],
                [rate.interval.low for rate in by_length.values()],
                [rate.interval.high for rate in by_length.values()],
                color=color,
                dash=dash,
                symbol=symbol,
                customdata=[[f"{at:,}", f"{rate.right}/{rate.n}"] for at, rate in by_length.items()],
                hovertemplate="%{customdata[0]} tokens: %{y:.0%} (%{customdata[1]})<extra></extra>",
            )
        )
    if hits is not None:
        value, low, high = np.array(list(hits.values())).T
        data.append(
            chart.line(
                "retrieval heads at the right token",
                [at_x[at] + shift["hits"] for at in hits],
                value,
                low,
                high,
                color=chart.WARN,
                dash="dashdot",
                symbol="triangle-up",
                customdata=[f"{at:,}" for at in hits],
                hovertemplate="%{customdata} tokens: %{y:.0%} of steps<extra></extra>",
            )
        )
    return chart.figure(
        "effective_length",
        title,
        "Share of prompts answered right by prompt length, with 95 % Clopper-Pearson intervals; beside it the same "
        "question over the needle's sentence alone (can it answer?) and with the needle left out (does it guess?), and "
        "how often the retrieval heads look at the right token. Dashed across: the threshold in use, "
        f"{100 * threshold:g} %.",
        data,
        {
            "height": 440,
            "xaxis": chart.axis(
                "prompt length (tokens)",
                tickvals=list(at_x.values()),
                ticktext=[f"{at:,}" for at in lengths],
                range=[-0.35, len(lengths) - 0.65],
            ),
            "yaxis": chart.share_axis("share"),
            "shapes": [chart.rule(y=threshold)],
        },
    )
