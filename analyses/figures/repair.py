"""The figure of `self_repair`: what each head behind the removed ones writes, before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from probe import chart
from probe.analyses.measures.repair_reading import RepairReading
from probe.finding import Figure

_SHOWN = 16


def repair_figures(reading: RepairReading, title: str, named: Sequence[tuple[int, int]]) -> Iterator[Figure]:
    """Yield what the heads that change most write with nothing, with found heads and with others removed."""
    change = np.abs((reading.after - reading.before).mean(axis=0))
    order = sorted(range(len(reading.behind)), key=lambda i: (-change[i], reading.behind[i]))[:_SHOWN]
    names = [f"({reading.behind[i][0]}, {reading.behind[i][1]})" for i in order]
    at = list(range(len(order)))
    drawn = np.full(len(order), np.nan)
    for place, i in enumerate(order):
        if np.isfinite(reading.others[:, i]).any():
            drawn[place] = float(np.nanmean(reading.others[:, i]))
    data = [
        chart.line(
            label,
            at,
            values,
            color=color,
            mode="markers",
            marker={"color": color, "size": 11, "symbol": symbol},
            hovertemplate=f"{label}: %{{y:.3f}} logits<extra></extra>",
        )
        for label, values, color, symbol in (
            ("nothing removed", reading.before.mean(axis=0)[order], chart.QUIET, "circle"),
            ("found heads removed", reading.after.mean(axis=0)[order], chart.WARN, "diamond"),
            ("others removed", drawn, chart.ACCENT, "circle-open"),
        )
        if np.isfinite(values).any()
    ]
    marked = f"; making up for the removed ones: {', '.join(map(str, named))}" if named else ""
    yield chart.figure(
        "repair_by_head",
        title,
        f"Mean over {len(reading.prompts)} prompts of what a head writes into the answer's logit over a distractor's, "
        f"at the norms' scale of the untouched model; the {len(order)} heads behind the removed ones that change most"
        f"{marked}.",
        data,
        {
            "xaxis": chart.axis("head (layer, head)", tickvals=at, ticktext=names, showgrid=False),
            "yaxis": chart.axis("written for the answer (logits)"),
            "shapes": [chart.rule(y=0.0)],
        },
    )
