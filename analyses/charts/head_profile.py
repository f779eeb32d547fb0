"""One head: how far it looks, where along the text it looks how, and which rotary pairs make its logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from probe import chart
from probe.analyses.measures.one_head import OfLayer, named, of_layer
from probe.errors import MissingStatistic, UsageError
from probe.finding import Figure

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]

MOST_POINTS: Final = 400
"""Points of a line, at most; of a longer text each is the mean of as many queries."""
_OTHERS: Final = "mean of the layer"


def distance_profile(trace: Trace, *, layer: int, head: int) -> Figure:
    """Draw the share of a head's attention by distance, beside the mean over its layer's heads.

    Raises MissingStatistic saying what to capture, UsageError for a head that there is not, as all of this file do.
    """
    found = _checked(trace, "distance_histogram", layer, head)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = found.values / found.values.sum(-1, keepdims=True)
    names = _bins(found.places.tolist(), trace.num_queries)
    bars: chart.Trace = {
        "type": "bar",
        "name": f"head {head}",
        "x": names,
        "y": chart.numbers(shares[head], 4),
        "marker": {"color": chart.ACCENT},
        "hovertemplate": "%{x} tokens back: %{y:.2%}<extra></extra>",
    }
    others = chart.line(_OTHERS, names, _mean(shares), color=chart.WARN, dash="dot", symbol="diamond")
    return chart.figure(
        "distance_profile",
        f"How far back it looks: layer {layer}, head {head}",
        "Share of all its attention, over all queries, by how many tokens the key stands behind the query.",
        [bars, others],
        {
            "xaxis": chart.axis("tokens back", type="category", showgrid=False),
            "yaxis": chart.axis("share of its attention", tickformat=".0%", rangemode="tozero"),
        },
    )


def offset_profile(trace: Trace, *, layer: int, head: int) -> Figure:
    """Draw the mean p of the key at each small offset behind the query, over the queries that have one."""
    found = _checked(trace, "offset_mass", layer, head)
    queries = trace.num_queries - found.places
    there = queries > 0
    mean = found.values[:, there] / queries[there]
    x = found.places[there]
    data = [
        chart.line(f"head {head}", x, mean[head], mode="lines+markers" if len(x) <= 64 else "lines"),
        chart.line(_OTHERS, x, _mean(mean), color=chart.WARN, dash="dot", mode="lines"),
    ]
    return chart.figure(
        "offset_profile",
        f"Small offsets: layer {layer}, head {head}",
        f"Mean p of the key so many tokens before the query, over those of {trace.num_queries:,} that have one; "
        "a peak at 1 is a previous-token head; peaks at equal steps are a diagonal pattern.",
        data,
        {"xaxis": chart.axis("tokens back"), "yaxis": chart.axis("mean p", rangemode="tozero")},
    )


def masses_by_position(trace: Trace, *, layer: int, head: int) -> Figure:
    """Draw sink mass, recent mass and largest probability by the query's position, as far as they were captured."""
    lines, missing = [], []
    for i, statistic in enumerate(("sink_mass", "recent_mass", "max_probability")):
        try:
            lines.append((statistic, _checked(trace, statistic, layer, head), i))
        except MissingStatistic:
            missing.append(statistic)
    if not lines:
        _checked(trace, "sink_mass", layer, head)
    data: list[chart.Trace] = []
    for statistic, found, i in lines:
        color, dash = chart.SERIES[i], chart.DASHES[i]
        data.append(_series(trace, statistic.replace("_", " "), found, head, color=color, dash=dash))
    said = [f"{found.name}: {found.definition.rstrip('.')}." for _, found, _ in lines if found.definition]
    caption = " ".join([*said, _pooled([found for _, found, _ in lines]).strip()]).strip()
    caption += f" Not captured: {', '.join(missing)}." if missing else ""
    layout = {"xaxis": chart.axis("position of the query"), "yaxis": chart.share_axis("probability")}
    return chart.figure(
        "masses_by_position", f"Where its attention lies: layer {layer}, head {head}", caption, data, layout
    )


def entropy_by_position(trace: Trace, *, layer: int, head: int) -> Figure:
    """Draw the entropy of a head's attention by the query's position, beside that of looking at all keys alike."""
    found = _checked(trace, "entropy", layer, head)
    x, _ = _points(found.places, found.values[head], _queries(trace, found))
    uniform = np.log1p(x + (found.block_tokens - 1) / 2)
    data = [
        _series(trace, f"head {head}", found, head),
        _series(trace, _OTHERS, found, None, color=chart.WARN, dash="dot"),
        chart.line("all keys alike", x, uniform, color=chart.QUIET, dash="dash", mode="lines"),
    ]
    return chart.figure(
        "entropy_by_position",
        f"How spread it looks: layer {layer}, head {head}",
        f"{_defined(found)}Dashed: log of the number of keys before the query, its own included, what "
        f"attention to all of them alike would have.{_pooled([found])}",
        data,
        {"xaxis": chart.axis("position of the query"), "yaxis": chart.axis("entropy (nats)", rangemode="tozero")},
    )


def mean_distance_by_position(trace: Trace, *, layer: int, head: int) -> Figure:
    """Draw the mean distance of what a head looks at by the query's position."""
    found = _checked(trace, "mean_distance", layer, head)
    data = [
        _series(trace, f"head {head}", found, head),
        _series(trace, _OTHERS, found, None, color=chart.WARN, dash="dot"),
    ]
    return chart.figure(
        "mean_distance_by_position",
        f"Mean distance: layer {layer}, head {head}",
        f"{_defined(found)}Mean of the layer: over its heads.{_pooled([found])}",
        data,
        {"xaxis": chart.axis("position of the query"), "yaxis": chart.axis("tokens back", rangemode="tozero")},
    )


def rope_shares(trace: Trace, *, layer: int, head: int) -> Figure:
    """Draw which share of a head's logits each rotary pair makes, by distance."""
    found = _checked(trace, "rope_share", layer, head)
    pairs = _checked(trace, "rope_share_num_pairs", layer, head)
    shares = np.where(pairs.values[head][:, None] > 0, found.values[head], np.nan)[:, : chart.MOST_CELLS]
    bins = _bins(pairs.places.tolist(), trace.num_queries)
    num = shares.shape[1]
    cells = chart.heatmap(
        [str(pair) for pair in range(num)],
        bins,
        shares,
        unit="share",
        hover="rotary pair %{x}, %{y} tokens back<br>share %{z:.3f}",
        high=float(np.nanmax(shares, initial=1e-6)),
    )
    every = max(1, -(-num // 32))
    return chart.figure(
        "rope_shares",
        f"Rotary pairs: layer {layer}, head {head}",
        f"{_defined(found)}Fastest pair first; a distance of which no pair was drawn is empty.",
        [cells],
        {
            "height": int(np.clip(150 + 18 * len(bins), 260, 560)),
            "xaxis": chart.axis(
                "rotary pair", type="category", tickvals=[str(i) for i in range(0, num, every)], showgrid=False
            ),
            "yaxis": chart.axis("tokens back", type="category", showgrid=False),
        },
    )


def _checked(trace: Trace, statistic: str, layer: int, head: int) -> OfLayer:
    if not 0 <= head < trace.heads.get(layer, 0):
        raise UsageError(f"there is no layer {layer} with a head {head} in this trace")
    return of_layer(trace, named(trace, statistic, layer), layer)


def _series(
    trace: Trace, name: str, found: OfLayer, head: int | None, *, color: str = chart.ACCENT, dash: str = "solid"
) -> chart.Trace:
    values = _mean(found.values) if head is None else found.values[head]
    x, y = _points(found.places, values, _queries(trace, found))
    hover = "query %{x:,}: %{y:.4g}<extra>" + chart.shown(name) + "</extra>"
    return chart.line(name, x, y, color=color, dash=dash, mode="lines", hovertemplate=hover)


def _queries(trace: Trace, found: OfLayer) -> Floats:
    """Return how many queries each entry is the mean of."""
    stops = np.minimum(found.places + found.block_tokens, max(trace.num_queries, int(found.places[-1]) + 1))
    return np.asarray(stops - found.places, np.float64)


def _points(places: NDArray[np.int64], values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return at most `MOST_POINTS` places and means; a mean of what is not finite is NaN."""
    by = -(-len(values) // MOST_POINTS)
    if by <= 1:
        return places.astype(np.float64), values
    starts = np.arange(0, len(values), by)
    total = np.add.reduceat(values * weights, starts)
    return places[starts].astype(np.float64), np.asarray(total / np.add.reduceat(weights, starts))


def _defined(found: OfLayer) -> str:
    return f"{found.definition.rstrip('.')}. " if found.definition else ""


def _mean(values: Floats) -> Floats:
    return np.asarray(values.mean(0))


def _pooled(found: Sequence[OfLayer]) -> str:
    most = max(found, key=lambda each: each.block_tokens * len(each.places))
    tokens = most.block_tokens * -(-len(most.places) // MOST_POINTS)
    return f" A point is the mean of {tokens:,} queries." if tokens > 1 else ""


def _bins(edges: Sequence[int], num_queries: int) -> list[str]:
    """Return distance bins in words, each from its lower edge to below twice that, and no further than the text."""
    ends = [min(max(2 * low, 1), max(num_queries, low + 1)) for low in edges]
    return [f"{low:,}" if end - low <= 1 else f"{low:,}–{end - 1:,}" for low, end in zip(edges, ends, strict=True)]
