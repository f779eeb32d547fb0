"""The figures of `lost_in_the_middle`: right answers by place with the fitted curve, and its numbers by length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from probe import chart
from probe.analyses.measures.ends_and_middle import NUMBERS, fitted_curve
from probe.analyses.measures.place_profile import PlaceProfile
from probe.finding import Figure
from probe.intervals import clopper_pearson

_MOST_LENGTHS = 6
_STEPS = 41


def middle_figures(profiles: Sequence[PlaceProfile]) -> Iterator[Figure]:
    """Yield the figures; nothing where no length has three places."""
    if not profiles:
        return
    # The shortest and the longest lengths are always among the lines.
    picked = np.unique(np.linspace(0, len(profiles) - 1, min(_MOST_LENGTHS, len(profiles))).round().astype(int))
    yield _by_place([profiles[at] for at in picked], len(profiles))
    if len(profiles) > 1:
        yield _by_length(profiles)


def _style(index: int) -> dict[str, str]:
    return {
        "color": chart.SERIES[index % len(chart.SERIES)],
        "dash": chart.DASHES[index % len(chart.DASHES)],
        "symbol": chart.SYMBOLS[index % len(chart.SYMBOLS)],
    }


def _by_place(profiles: Sequence[PlaceProfile], of: int) -> Figure:
    data = []
    for index, profile in enumerate(profiles):
        style, name = _style(index), f"{profile.length:,} tokens"
        exact = [clopper_pearson(int(k), int(n)) for k, n in zip(profile.right, profile.asked, strict=True)]
        rates = profile.right / profile.asked
        data.append(
            chart.line(
                name,
                profile.places,
                rates,
                [each.low for each in exact if each],
                [each.high for each in exact if each],
                **style,
                mode="markers",
                legendgroup=name,
                text=[f"{k} of {n} right" for k, n in zip(profile.right, profile.asked, strict=True)],
                hovertemplate="place %{x:.2f}: %{text}<extra></extra>",
            )
        )
        x = np.linspace(profile.places[0], profile.places[-1], _STEPS)
        data.append(
            chart.line(
                f"{name}, fitted",
                x,
                np.clip(fitted_curve(profile.places, rates, x), 0, 1),
                **style,
                mode="lines",
                legendgroup=name,
                showlegend=False,
                hoverinfo="skip",
            )
        )
    shown = f" {len(profiles)} of {of} lengths are drawn." if len(profiles) < of else ""
    return chart.figure(
        "accuracy_by_place",
        "Right answers by the place of the answer",
        "Points: share of prompts answered right by where the answer stands (0: first, 1: last), with exact 95 % "
        f"intervals. Lines: the parabola fitted to them, this toolkit's own.{shown}",
        data,
        {"xaxis": chart.axis("place of the answer"), "yaxis": chart.share_axis("answered right")},
    )


def _by_length(profiles: Sequence[PlaceProfile]) -> Figure:
    data = []
    for index, name in enumerate(NUMBERS):
        intervals = [profile.value_interval(name) for profile in profiles]
        data.append(
            chart.line(
                name,
                # Beside each other, so that no bar hides another.
                [profile.length * 1.015 ** (index - 1) for profile in profiles],
                [profile.values[name] for profile in profiles],
                [each.low for each in intervals],
                [each.high for each in intervals],
                **_style(index),
                hovertemplate=f"{name}: %{{y:.1f}} points<extra></extra>",
            )
        )
    ticks = [profile.length for profile in profiles]
    return chart.figure(
        "u_by_length",
        "How far the ends lie above the middle, by length",
        "Primacy (first place less the mean of the inner ones), recency (last less that mean) and their mean, U, in "
        "percentage points, with 95 % intervals; this toolkit's own. A U needs primacy and recency above 0.",
        data,
        {
            "xaxis": chart.axis(
                "prompt length (tokens)", type="log", tickvals=ticks, ticktext=[f"{t:,}" for t in ticks]
            ),
            "yaxis": chart.axis("percentage points"),
            "shapes": [chart.rule(y=0)],
        },
    )
