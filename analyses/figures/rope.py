"""The figures of `positional_heads`: an atlas of scores, the share of slow pairs by distance, and of each pair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from probe import chart
from probe.analyses.measures.rope_reading import RopeReading
from probe.finding import Figure
from probe.intervals import mean_ends


def rope_figures(
    readings: Sequence[RopeReading],
    exists: NDArray[np.bool_],
    found: Sequence[tuple[int, int]],
    nearest: int,
    seed: int,
) -> Iterator[Figure]:
    """Yield the figures; `found` are the positional heads, framed."""
    score = np.mean([each.by_distance for each in readings], axis=0)
    data, layout = chart.atlas(np.nan_to_num(score), exists, unit="correlation with distance", marked=found)
    yield chart.figure(
        "positional_atlas",
        f"{len(found) or 'None'} of {int(exists.sum())} heads are positional",
        "Correlation of the share of low-frequency rotary pairs with distance, mean over prompts, layer 0 at the "
        "bottom. Framed: positional heads by this toolkit's own definition.",
        data,
        layout,
    )
    marked = np.zeros(exists.shape, bool)
    for at in found:
        marked[at] = True
    yield _by_distance(readings, exists, marked, nearest, seed)
    yield _by_pair(readings, exists, marked, nearest)


def _groups(exists: NDArray[np.bool_], marked: NDArray[np.bool_]) -> Iterator[tuple[str, NDArray[np.bool_], str, str]]:
    if marked.any():
        yield "positional heads", marked, chart.ACCENT, "circle"
    if (exists & ~marked).any():
        yield "the other heads", exists & ~marked, chart.QUIET, "square"


def _by_distance(
    readings: Sequence[RopeReading], exists: NDArray[np.bool_], marked: NDArray[np.bool_], nearest: int, seed: int
) -> Figure:
    longest = max((each.edges for each in readings), key=len)
    data: list[chart.Trace] = []
    for name, heads, color, symbol in _groups(exists, marked):
        rows = np.full((len(readings), len(longest)), np.nan)
        for row, each in zip(rows, readings, strict=True):
            row[: len(each.edges)] = each.low_share[heads].mean(axis=0)
        x, y, low, high = [], [], [], []
        for b, edge in enumerate(longest):
            values = rows[np.isfinite(rows[:, b]), b]
            if edge < nearest or len(values) < 2:
                continue
            ends = mean_ends(values, seed=seed)
            x.append(int(edge))
            y.append(float(values.mean()))
            low.append(float(ends[0]))
            high.append(float(ends[1]))
        data.append(chart.line(name, x, y, low, high, color=color, symbol=symbol))
    return chart.figure(
        "low_share_by_distance",
        "How much of the logit's parts low-frequency pairs make, by distance",
        "Share of the absolute parts of the logit that rotary pairs with wavelengths above the training length make, "
        "mean over heads, with 95 % intervals over prompts. A distance stands for those up to twice it.",
        data,
        {
            "xaxis": chart.axis("distance in tokens", type="log"),
            "yaxis": chart.axis("share of low-frequency pairs", rangemode="tozero"),
        },
    )


def _by_pair(
    readings: Sequence[RopeReading], exists: NDArray[np.bool_], marked: NDArray[np.bool_], nearest: int
) -> Figure:
    share = np.mean([each.pair_share for each in readings], axis=0)
    data = [
        chart.line(name, np.arange(share.shape[-1]), share[heads].mean(axis=0), color=color, symbol=symbol)
        for name, heads, color, symbol in _groups(exists, marked)
    ]
    return chart.figure(
        "share_by_rope_pair",
        "Which rotary pairs make the logits of distant tokens",
        f"Share of each rotary pair at distances of {nearest} tokens and more, fastest first; where some channels do "
        "not turn, their part comes last.",
        data,
        {"xaxis": chart.axis("rotary pair"), "yaxis": chart.axis("share", rangemode="tozero")},
    )
