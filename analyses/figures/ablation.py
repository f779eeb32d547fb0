"""The figures of `head_ablation`: right answers and answer loss by condition, every draw of the control a dot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from probe import chart
from probe.finding import Figure


@dataclass(frozen=True)
class Condition:
    """What the model did under one condition, or under one draw of the control: means and their intervals' ends."""

    name: str
    draw: int | None
    num_prompts: int
    accuracy: tuple[float, float, float]
    """In percent."""
    answer_loss: tuple[float, float, float]
    text_loss: tuple[float, float, float]


def ablation_figures(conditions: list[Condition], num_prompts: int) -> Iterator[Figure]:
    """Yield the figures for the conditions in the order of the axis; draws follow their mean."""
    about = (
        f"{num_prompts} prompts, the same in every condition. Large marks: mean and 95 % interval; small dots: single "
        "draws of as many other heads"
    )
    whole = {c.name: c for c in conditions if c.draw is None}
    removed, others = whole["found heads removed"], whole["others removed"]
    title = (
        f"With the found heads removed {removed.accuracy[0]:.0f} % are right, with others {others.accuracy[0]:.0f} %"
    )
    yield _dots(
        "ablation_accuracy",
        title,
        f"Share of prompts answered right. {about}.",
        conditions,
        lambda c: (c.accuracy[0] / 100, c.accuracy[1] / 100, c.accuracy[2] / 100),
        chart.share_axis("answered right"),
        "%{y:.1%} right",
    )
    if any(np.isfinite(condition.answer_loss[0]) for condition in conditions):
        yield _dots(
            "ablation_loss",
            f"Answer loss: {removed.answer_loss[0]:.2f} nats with the found heads removed, {others.answer_loss[0]:.2f} "
            "with others",
            f"Mean negative log-likelihood of the right answer's tokens. {about}.",
            conditions,
            lambda c: c.answer_loss,
            chart.axis("answer loss (nats per token)", rangemode="tozero"),
            "%{y:.3f} nats",
        )


def _dots(
    name: str,
    title: str,
    caption: str,
    conditions: list[Condition],
    of: Callable[[Condition], tuple[float, float, float]],
    axis: dict[str, object],
    hover: str,
) -> Figure:
    colors = {"nothing removed": chart.QUIET, "found heads removed": chart.WARN, "others removed": chart.ACCENT}
    names = [condition.name for condition in conditions if condition.draw is None]
    data: list[chart.Trace] = []
    draws = [condition for condition in conditions if condition.draw is not None]
    if draws:
        # Spread by the order of the draws: it means nothing, and keeps equal dots apart.
        spread = np.linspace(-0.16, 0.16, len(draws)) if len(draws) > 1 else np.zeros(1)
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "single draw",
                "x": [round(names.index(c.name) + float(s), 4) for c, s in zip(draws, spread, strict=True)],
                "y": chart.numbers([of(condition)[0] for condition in draws]),
                "marker": {"color": chart.ACCENT, "size": 6, "opacity": 0.45, "line": {"width": 0}},
                "customdata": [condition.draw for condition in draws],
                "hovertemplate": f"draw %{{customdata}}: {hover}<extra></extra>",
            }
        )
    for index, label in enumerate(names):
        condition = next(c for c in conditions if c.name == label and c.draw is None)
        value, low, high = of(condition)
        data.append(
            chart.line(
                label,
                [index + (0.26 if label == "others removed" and draws else 0.0)],
                [value],
                [low],
                [high],
                color=colors[label],
                mode="markers",
                marker={"color": colors[label], "size": 13, "symbol": "diamond"},
                hovertemplate=f"{label}: {hover}<extra></extra>",
                showlegend=False,
            )
        )
    return chart.figure(
        name,
        title,
        caption,
        data,
        {
            "showlegend": False,
            "xaxis": chart.axis(
                "",
                tickvals=list(range(len(names))),
                ticktext=names,
                range=[-0.5, len(names) - 0.5],
                showgrid=False,
            ),
            "yaxis": axis,
        },
    )
