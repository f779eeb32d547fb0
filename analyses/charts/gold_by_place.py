"""Attention to the gold beside right answers, by where it stands: whether what is lost was looked at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from probe import chart
from probe.analyses.measures.place_readings import gold_attention
from probe.analyses.measures.units_at import units_at
from probe.errors import MissingStatistic
from probe.finding import Figure
from probe.intervals import FEWEST_PROMPTS, clopper_pearson, cluster_bootstrap
from probe.storage.trace_store import Run, Trace
from probe.storage.unit_answer import UnitAnswer


def gold_by_place(
    run: Run | Trace, condition: str, length: int, *, answers: Iterable[UnitAnswer] | None = None
) -> Figure:
    """Draw right answers above and attention to the gold below, of the same prompts of one condition and length.

    Raises MissingStatistic, saying what to capture, where `span_mass` was not.
    """
    units = units_at(run, condition, length, ["span_mass"], answers=answers)
    found: dict[float, list[tuple[str, bool | None, float, float]]] = {}
    for trace, answer in zip(units.traces, units.answers, strict=True):
        mass = gold_attention(trace)
        if mass is not None and answer.depth is not None:
            found.setdefault(round(answer.depth, 3), []).append((answer.sample, answer.correct, *mass))
    if not found:
        raise MissingStatistic(
            f"attention to the gold was not captured at {length:,} tokens under {condition!r}: add `span_mass` to a "
            "casebook's capture, for a workload whose samples have a span `needle` and a depth"
        )
    places = sorted(found)
    data: list[chart.Trace] = []
    judged = {at: [right for _, right, _, _ in found[at] if right is not None] for at in places}
    asked = [at for at in places if judged[at]]
    if asked:
        exact = [clopper_pearson(sum(judged[at]), len(judged[at])) for at in asked]
        shares = [sum(judged[at]) / len(judged[at]) for at in asked]
        data.append(
            chart.line(
                "right answers",
                asked,
                shares,
                [np.nan if each is None else each.low for each in exact],
                [np.nan if each is None else each.high for each in exact],
                customdata=[f"{sum(judged[at])}/{len(judged[at])}" for at in asked],
                hovertemplate="place %{x:.2f}: %{y:.0%} right (%{customdata})<extra></extra>",
            )
        )
    masses = {
        "attention to the gold, mean over heads": [
            [(sample, mean) for sample, _, mean, _ in found[at]] for at in places
        ],
        "the head that gives it most": [[(sample, most) for sample, _, _, most in found[at]] for at in places],
    }
    for index, (name, columns) in enumerate(masses.items(), 1):
        ends = [_interval(column) for column in columns]
        line = chart.line(
            name,
            places,
            [float(np.mean([value for _, value in column])) for column in columns],
            [low for low, _ in ends],
            [high for _, high in ends],
            color=chart.SERIES[index],
            dash=chart.DASHES[index],
            symbol=chart.SYMBOLS[index],
            hovertemplate="place %{x:.2f}: %{y:.4f}<extra></extra>",
        )
        data.append(line | {"yaxis": "y2"})
    return chart.figure(
        "gold_by_place",
        f"Attention against behaviour by place: {condition}, {length:,} tokens",
        "Above: share of prompts answered right. Below: share of attention on the needle or gold document as the first "
        "answer token is produced (log), mean over all heads and of the strongest head, over the same prompts; 95 % "
        f"intervals (Clopper-Pearson; bootstrap over prompts from five on). {units.words} read. Attention is not use: "
        "a place can be looked at and lost.",
        data,
        {
            "height": 560,
            "margin": {"l": 72, "r": 28, "t": 110, "b": 62},
            "xaxis": chart.axis("place (0: first, 1: last)", anchor="y2"),
            "yaxis": chart.share_axis("right answers", domain=[0.58, 1.0]),
            "yaxis2": chart.axis("attention to the gold (log)", type="log", domain=[0.0, 0.48], anchor="x"),
        },
    )


def _interval(column: Sequence[tuple[str, float]]) -> tuple[float, float]:
    if len({sample for sample, _ in column}) < FEWEST_PROMPTS:
        return np.nan, np.nan
    found = cluster_bootstrap([value for _, value in column], [sample for sample, _ in column])
    return (np.nan, np.nan) if found is None else (found.low, found.high)
