"""The figures of `state_collapse`: states by position, and recall by length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from probe import chart
from probe.analyses.figures.lengths import Rate
from probe.analyses.measures.state_growth import Growth
from probe.analyses.measures.state_readings import StateReading
from probe.finding import Figure

MOST_LINES = 6
MOST_POINTS = 40


def state_figure(growth: Growth, readings: Sequence[StateReading], trained: int) -> Figure:
    """Return each head's variance by tokens read over its largest within the training length, of the longest texts."""
    length = max(reading.tokens[-1] for reading in readings)
    longest = [reading for reading in readings if len(reading.tokens) == _most(readings, length)]
    tokens = longest[0].tokens
    ratios = np.array(
        [
            np.log(reading.variance / reading.variance[:, tokens <= trained].max(1, keepdims=True))
            for reading in longest
            if np.array_equal(reading.tokens, tokens)
        ]
    )
    mean = np.exp(ratios.mean(0))
    order = np.argsort(-growth.log_ratio.mean(0), kind="stable")
    shown = order if len(order) <= 2 * MOST_LINES else np.concatenate([order[:MOST_LINES], order[-MOST_LINES:]])
    # Evenly spaced on the logarithmic axis.
    kept = np.unique(np.geomspace(1, len(tokens), MOST_POINTS).round().astype(int)) - 1
    data = []
    for place, index in enumerate(shown.tolist()):
        layer, head = growth.heads[index]
        explodes = bool(growth.explodes[index])
        data.append(
            chart.line(
                f"({layer}, {head}){' explodes' if explodes else ''}",
                tokens[kept],
                mean[index, kept],
                color=chart.SERIES[place % len(chart.SERIES)],
                dash="solid" if explodes else "dot",
                symbol=chart.SYMBOLS[place % len(chart.SYMBOLS)],
                hovertemplate=f"head ({layer}, {head}), %{{x}} tokens: %{{y:.3g}} times<extra></extra>",
            )
        )
    left = len(order) - len(shown)
    return chart.figure(
        "state_variance",
        "Variance of each head's state, over its largest within the training length",
        f"Geometric mean over the {len(ratios)} longest texts; the dashed lines stand at the training length and at "
        f"{growth.threshold:g} times the range. Heads are (layer, head), those that grow most first"
        + (f"; {left} in between are left out." if left else "."),
        data,
        {
            "height": 440,
            "margin": {"l": 72, "r": 28, "t": 120, "b": 62},
            "xaxis": chart.axis("tokens read", type="log"),
            "yaxis": chart.axis("times the range", type="log"),
            "shapes": [chart.rule(x=float(trained)), chart.rule(y=growth.threshold)],
        },
    )


def recall_figure(by_name: Mapping[str, Mapping[int, Rate]], trained: int) -> Figure:
    """Return the share of right answers by length: what is recent, alone and in whole texts, and what is older."""
    lengths = sorted({at for rates in by_name.values() for at in rates})
    place = {at: float(index) for index, at in enumerate(lengths)}
    data = []
    for index, (name, rates) in enumerate(by_name.items()):
        if not rates:
            continue
        data.append(
            chart.line(
                name,
                [place[at] + 0.06 * (index - 1) for at in rates],
                [each.share for each in rates.values()],
                [each.interval.low for each in rates.values()],
                [each.interval.high for each in rates.values()],
                color=chart.SERIES[index % len(chart.SERIES)],
                dash=chart.DASHES[index % len(chart.DASHES)],
                symbol=chart.SYMBOLS[index % len(chart.SYMBOLS)],
                customdata=[[f"{at:,}", f"{each.right}/{each.n}"] for at, each in rates.items()],
                hovertemplate="%{customdata[0]} tokens: %{y:.0%} (%{customdata[1]})<extra></extra>",
            )
        )
    return chart.figure(
        "recall_by_length",
        "Right answers by length of the text and age of what is asked",
        f"Recent: at most {trained:,} tokens old, as in training. Bars are exact 95 % intervals.",
        data,
        {
            "xaxis": chart.axis("prompt tokens", tickvals=list(place.values()), ticktext=[f"{at:,}" for at in lengths]),
            "yaxis": chart.share_axis("right answers"),
        },
    )


def _most(readings: Sequence[StateReading], length: float) -> int:
    return max(len(reading.tokens) for reading in readings if reading.tokens[-1] == length)
