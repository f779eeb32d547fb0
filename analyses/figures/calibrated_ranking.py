"""The figure of `calibrated_ranking`: how often the gold is found, by its place and by each score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from probe import chart
from probe.analyses.measures.calibrated_ranks import RankedGold
from probe.finding import Figure
from probe.intervals import clopper_pearson

_SCORES = {"raw": "attention as it is", "subtract": "less the dummy's", "divide": "over the dummy's"}


def ranking_figures(golds: Sequence[RankedGold], most: int) -> Iterator[Figure]:
    """Yield Recall@`most` by the gold's place, at the longest length."""
    if not golds:
        return
    longest = max(each.length for each in golds)
    here = [each for each in golds if each.length == longest]
    places = sorted({each.place for each in here})
    data = []
    for index, (score, words) in enumerate(_SCORES.items()):
        hits = [[getattr(each, score) <= most for each in here if each.place == place] for place in places]
        ends = [clopper_pearson(sum(some), len(some)) for some in hits]
        data.append(
            chart.line(
                words,
                places,
                [float(np.mean(some)) for some in hits],
                [end.low for end in ends if end is not None],
                [end.high for end in ends if end is not None],
                color=chart.SERIES[index % len(chart.SERIES)],
                dash=chart.DASHES[index % len(chart.DASHES)],
                symbol=chart.SYMBOLS[index % len(chart.SYMBOLS)],
                hovertemplate="gold at %{x:.2f}: %{y:.0%}<extra></extra>",
            )
        )
    chance = float(np.mean([min(1.0, most / each.number) for each in here]))
    yield chart.figure(
        "calibrated_ranking",
        f"Whether the gold is among the first {most} by attention, at {longest:,} tokens",
        f"Recall@{most} of the gold document, by its place, with exact 95 % intervals: by attention as it is, and with "
        "what a dummy gets at a document's place taken off, in either form. Dashed: documents drawn at random.",
        data,
        {
            "xaxis": chart.axis("place of the gold document (0: first, 1: last)"),
            "yaxis": chart.share_axis(f"gold among the first {most}"),
            "shapes": [chart.rule(y=chance)],
        },
    )
