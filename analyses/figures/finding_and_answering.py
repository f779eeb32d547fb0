"""The figure of `finding_and_answering`: right answers by length over three texts, on the same questions."""

from __future__ import annotations

from collections.abc import Sequence

from probe import chart
from probe.analyses.measures.three_roles import Asked
from probe.finding import Figure
from probe.intervals import clopper_pearson


def by_length_figure(prompts: Sequence[Asked]) -> Figure:
    """Return the shares of right answers by length, with exact intervals."""
    lengths = sorted({each.length for each in prompts})
    styles = (
        ("whole text", "right", chart.ACCENT, "solid", "circle", 0.0),
        ("gold passage alone", "right_alone", chart.SERIES[2], "dot", "square", -0.06),
        ("gold left out", "right_absent", chart.QUIET, "dash", "diamond", 0.06),
    )
    data = []
    for name, field, color, dash, symbol, shift in styles:
        points = []
        for index, at in enumerate(lengths):
            values = [getattr(each, field) for each in prompts if each.length == at]
            known = [bool(value) for value in values if value is not None]
            if (ends := clopper_pearson(sum(known), len(known))) is not None:
                points.append((index + shift, sum(known) / len(known), ends.low, ends.high, at, sum(known), len(known)))
        if not points:
            continue
        x, y, low, high, at_length, right, n = zip(*points, strict=True)
        data.append(
            chart.line(
                name,
                x,
                y,
                low,
                high,
                color=color,
                dash=dash,
                symbol=symbol,
                text=[f"{a:,} tokens: {r} of {m} right" for a, r, m in zip(at_length, right, n, strict=True)],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    return chart.figure(
        "finding_and_answering",
        "Right answers in the whole text, from the gold alone, and without it",
        "The same questions three times at every length, with exact 95 % intervals. Where the gold alone is answered "
        "and the whole text is not, what fails is finding; where neither is, it is answering.",
        data,
        {
            "xaxis": chart.axis(
                "length of the whole text (tokens)",
                tickvals=list(range(len(lengths))),
                ticktext=[f"{at:,}" for at in lengths],
                range=[-0.35, len(lengths) - 0.65],
            ),
            "yaxis": chart.share_axis("right answers"),
        },
    )
