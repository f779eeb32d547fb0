"""The figures of `compare_conditions`: what each condition changes, over all, by length, by depth and by both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from probe import chart
from probe.analyses.figures.condition_cells import difference_cells
from probe.analyses.measures.condition_effect import ConditionEffect, Difference
from probe.finding import Figure

COLORS: Final = {"helps": chart.ACCENT, "hurts": chart.WARN, "no different": chart.QUIET, "cannot be told": "#4b5563"}
SYMBOLS: Final = {"helps": "circle", "hurts": "diamond", "no different": "square", "cannot be told": "circle-open"}


def condition_figures(
    effects: Sequence[ConditionEffect], judged: Mapping[str, str], by: str, margin: float, title: str
) -> Iterator[Figure]:
    """Yield the figures; `judged` says of each condition what `COLORS` lists."""
    if not effects:
        return
    accuracy = [(effect.name, effect.accuracy) for effect in effects]
    loss = [(effect.name, effect.answer_loss) for effect in effects if effect.answer_loss is not None]
    yield _rows(
        "conditions_accuracy",
        title if by == "accuracy" else "Right answers, with each condition less without it",
        "Share of right answers with a condition less without it, the same prompts both ways, in percentage points, "
        "with 95 % intervals; right of the line is better",
        accuracy,
        judged if by == "accuracy" else {},
        margin if by == "accuracy" else None,
        "percentage points more than without it",
        "%{x:+.1f} points",
    )
    if loss:
        yield _rows(
            "conditions_loss",
            title if by == "answer_loss" else "Loss of the right answer, with each condition less without it",
            "Mean negative log-likelihood of the right answer's tokens with a condition less without it, the same "
            "prompts both ways, with 95 % intervals; left of the line is better",
            loss,
            judged if by == "answer_loss" else {},
            margin if by == "answer_loss" else None,
            "nats per token more than without it",
            "%{x:+.3f} nats",
        )
    by_length = [(effect.name, effect.by_length) for effect in effects]
    by_depth = [(effect.name, effect.by_depth) for effect in effects]
    for of, label, rows in (
        ("length", "prompt length (tokens)", by_length),
        ("depth", "where the answer stands, from first (0) to last (1)", by_depth),
    ):
        places = sorted({place for _, each in rows for place in each})
        if len(places) > 1:
            yield _cells(f"conditions_by_{of}", of, label, rows, places)
    if any(effect.by_cell for effect in effects):
        yield difference_cells(effects, by)


def _rows(
    name: str,
    title: str,
    caption: str,
    rows: Sequence[tuple[str, Difference]],
    judged: Mapping[str, str],
    margin: float | None,
    label: str,
    hover: str,
) -> Figure:
    data: list[chart.Trace] = []
    kinds = [judged.get(condition, "cannot be told") for condition, _ in rows]
    for kind in dict.fromkeys(kinds):
        own = [(i, each) for i, (each, of) in enumerate(zip(rows, kinds, strict=True)) if of == kind]
        ends = [d.interval for _, (_, d) in own]
        values = np.array([d.difference for _, (_, d) in own])
        high = np.array([v if e is None else e.high for v, e in zip(values, ends, strict=True)])
        low = np.array([v if e is None else e.low for v, e in zip(values, ends, strict=True)])
        color = COLORS[kind] if judged else chart.ACCENT
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": kind if judged else "difference",
                "x": chart.numbers(values),
                "y": [float(len(rows) - 1 - i) for i, _ in own],
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": chart.numbers(np.maximum(high - values, 0)),
                    "arrayminus": chart.numbers(np.maximum(values - low, 0)),
                    "color": color,
                    "thickness": 1.6,
                    "width": 5,
                },
                "marker": {"color": color, "size": 10, "symbol": SYMBOLS[kind] if judged else "circle"},
                "customdata": [[chart.shown(condition), d.n] for _, (condition, d) in own],
                "hovertemplate": "%{customdata[0]}: " + hover + ", n = %{customdata[1]}<extra></extra>",
                "showlegend": bool(judged),
            }
        )
    shapes = [chart.rule(x=0.0)]
    if margin is not None:
        shapes.append(
            {
                "type": "rect", "layer": "below", "xref": "x", "yref": "paper", "x0": -margin, "x1": margin,
                "y0": 0, "y1": 1, "fillcolor": chart.RULE, "opacity": 0.5, "line": {"width": 0},
            }
        )  # fmt: skip
        caption += f"; grey: no more than {margin:g} from 0, which counts as no difference"
    # What is drawn stands in words too, for who cannot see it.
    said = "; ".join(f"{condition} {_ends(d)}" for condition, d in rows[:12])
    return chart.figure(
        name,
        title,
        f"{caption}. {said}{' …' if len(rows) > 12 else ''}.",
        data,
        {
            "height": int(np.clip(150 + 34 * len(rows), 240, 900)),
            "shapes": shapes,
            "xaxis": chart.axis(label, zeroline=False),
            "yaxis": chart.axis(
                "",
                tickvals=[float(len(rows) - 1 - i) for i in range(len(rows))],
                ticktext=[chart.shown(condition) for condition, _ in rows],
                range=[-0.6, len(rows) - 0.4],
                showgrid=False,
            ),
        },
    )


def _ends(difference: Difference) -> str:
    ends = difference.interval
    return f"{difference.difference:+.3g}" + ("" if ends is None else f" [{ends.low:.3g}, {ends.high:.3g}]")


def _cells(
    name: str, of: str, label: str, rows: Sequence[tuple[str, Mapping[float, Difference]]], places: Sequence[float]
) -> Figure:
    before: dict[float, list[float]] = {place: [] for place in places}
    for _, each in rows:
        for place, difference in each.items():
            before[place].append(difference.before)
    # Conditions may have been read on different prompts; what is shown of doing nothing is the mean over them.
    nothing = [float(np.mean(before[place])) if before[place] else np.nan for place in places]
    shares = [nothing, *([each[p].value if p in each else np.nan for p in places] for _, each in rows)]
    array = np.array(shares)[::-1] / 100
    names = ["nothing", *(condition for condition, _ in rows)][::-1]
    words = [["" if not np.isfinite(v) else f"{v:.0%}" for v in row] for row in array.tolist()]
    at = [f"{place:,.0f}" if of == "length" else f"{place:.2g}" for place in places]
    most = chart.MOST_CELLS
    return chart.figure(
        name,
        f"Right answers by {of} under each condition",
        f"Share of prompts answered right at each {of}, with nothing done to the model (top row) and under each "
        "condition. The table behind the claim holds the numbers with their intervals.",
        [
            chart.heatmap(
                at[:most],
                [chart.shown(each) for each in names][-most:],
                array[-most:, :most],
                unit="answered right",
                hover=f"%{{y}}, {of} %{{x}}: %{{z:.0%}} right",
                text=words,
                scale=chart.SUCCESS,
                tickformat=".0%",
            )
        ],
        {
            "height": int(np.clip(170 + 30 * len(names), 260, 900)),
            "xaxis": chart.axis(label, type="category", showgrid=False, ticks="", showline=False),
            "yaxis": chart.axis("", type="category", showgrid=False, ticks="", showline=False),
        },
    )
