"""Every head by any of its scores: as a layer × head map, and one score against another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from probe import chart
from probe.analyses.measures.scores_of_heads import Head, Score, ScoresOfHeads, spearman
from probe.errors import UsageError
from probe.finding import Figure

Floats = NDArray[np.float64]
Drag = Literal["select", "lasso"]

MOST_MARKED: Final = 256
"""Heads that are framed, at most."""
_DIVERGING: Final = [[at, colour] for at, colour in chart.SUCCESS]


def head_atlas(scores: ScoresOfHeads, by: str, *, marked: Sequence[Head] = (), drag: Drag = "select") -> Figure:
    """Draw each head of each layer coloured by a score, layer 0 at the bottom, `marked` heads framed.

    `drag` is what a drag over it chooses heads with, where somebody listens: a box or a lasso. Raises UsageError for a
    score that there is not.
    """
    score = scores.score(by)
    layers = list(scores.by_layer)
    width = max((max(heads) for heads in scores.by_layer.values()), default=-1) + 1
    if len(layers) > chart.MOST_CELLS or width > chart.MOST_CELLS:
        raise UsageError(
            f"{len(layers)} layers of {width} heads are more than a map can show: {chart.MOST_CELLS} of each"
        )
    row = {layer: at for at, layer in enumerate(layers)}
    values = np.full((len(layers), width), np.nan)
    for (layer, head), value in zip(scores.heads, score.values.tolist(), strict=True):
        values[row[layer], head] = value
    low, high, scale = _colours(score.values)
    unit = f" ({score.unit})" if score.unit else ""
    cells = chart.heatmap(
        [str(head) for head in range(width)],
        [str(layer) for layer in layers],
        values,
        unit=score.name if len(score.name) < 40 else score.unit or "score",
        hover="layer %{y}, head %{x}<br>" + chart.shown(score.name) + " %{z:.4g}" + chart.shown(unit),
        text=[[_short(v) for v in line] for line in values.tolist()],
        scale=scale,
        low=low,
        high=high,
    )
    cells["z"] = chart.numbers(values, 5)
    if "textfont" in cells:
        cells["textfont"] = {"size": 11 if width <= 8 else 9}
    # Cells cannot be chosen with a box or a lasso: points in their middles, which nobody sees, can.
    points: chart.Trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [str(head) for _, head in scores.heads],
        "y": [str(layer) for layer, _ in scores.heads],
        "customdata": [list(each) for each in scores.heads],
        "marker": {"opacity": 0, "size": 4},
        "selected": {"marker": {"opacity": 0}},
        "unselected": {"marker": {"opacity": 0}},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    frames = [(row[layer], head) for layer, head in marked[:MOST_MARKED] if layer in row and head < width]
    caption = f"{score.words} Layer {layers[0] if layers else 0} at the bottom."
    if score.num_heads < len(scores.heads):
        caption += f" {score.num_heads} of {len(scores.heads):,} heads have this score; the others are left empty."
    caption += f" Framed: the {len(frames)} chosen heads." if frames else ""
    return chart.figure(
        "head_atlas",
        f"Heads by {score.name}",
        caption,
        [cells, points],
        {
            "height": int(np.clip(150 + 26 * len(layers), 280, 700)),
            "dragmode": drag,
            "shapes": [
                {
                    "type": "rect",
                    "x0": head - 0.5,
                    "x1": head + 0.5,
                    "y0": at - 0.5,
                    "y1": at + 0.5,
                    "line": {"color": chart.WARN, "width": 2.5},
                }
                for at, head in frames
            ],
            "xaxis": _axis("head", [str(head) for head in range(width)]),
            "yaxis": _axis("layer", [str(layer) for layer in layers]),
        },
    )


def head_scatter(
    scores: ScoresOfHeads, x: str, y: str, *, marked: Sequence[Head] = (), drag: Drag = "select"
) -> Figure:
    """Draw one score of each head against another, with Spearman's rank correlation; `marked` heads stand out.

    `drag` as for `head_atlas`. Raises UsageError for a score that there is not.
    """
    across, up = scores.score(x), scores.score(y)
    chosen = {head for head in marked if head in scores.index}
    both = np.isfinite(across.values) & np.isfinite(up.values)
    data = []
    for name, colour, symbol, size in (
        ("heads", chart.ACCENT, "circle", 6),
        ("chosen", chart.WARN, "diamond", 11),
    ):
        at = [i for i, head in enumerate(scores.heads) if both[i] and (head in chosen) == (name == "chosen")]
        points: chart.Trace = {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": chart.numbers(across.values[at], 5),
            "y": chart.numbers(up.values[at], 5),
            "customdata": [list(scores.heads[i]) for i in at],
            "hovertemplate": "layer %{customdata[0]}, head %{customdata[1]}<br>"
            + f"{chart.shown(across.name)} %{{x:.4g}}<br>{chart.shown(up.name)} %{{y:.4g}}<extra></extra>",
            "marker": {"color": colour, "symbol": symbol, "size": size, "opacity": 0.75 if name == "heads" else 1},
            "unselected": {"marker": {"opacity": 0.35}},
        }
        data += [points] if at or name == "heads" else []
    r, n = spearman(across.values, up.values)
    told = f"Spearman's rank correlation {r:+.2f} over {n:,} heads" if r is not None else _uncorrelated(n)
    caption = f"{told}. A point is a head that has both; what a score is stands under the map that it colours."
    return chart.figure(
        "head_scatter",
        f"{up.name} against {across.name}",
        caption,
        data,
        {
            "height": 420,
            "dragmode": drag,
            "xaxis": chart.axis(_titled(across)),
            "yaxis": chart.axis(_titled(up)),
        },
    )


def _uncorrelated(n: int) -> str:
    return f"No rank correlation: {n:,} heads have both, too few or all the same"


def _titled(score: Score) -> str:
    return f"{score.name} ({score.unit})" if score.unit else score.name


def _colours(values: Floats) -> tuple[float, float, list[list[Any]]]:
    """Return the ends and the scale: from 0 up, or to both sides of 0 where a score can be below it."""
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0, chart.MASS
    least, most = float(known.min()), float(known.max())
    if least < 0:
        end = max(abs(least), abs(most))
        return -end, end, _DIVERGING
    return 0.0, most or 1.0, chart.MASS


def _axis(title: str, names: Sequence[str]) -> dict[str, Any]:
    every = max(1, -(-len(names) // 32))
    # Points lie over the cells: without the order said, the first of them would begin it.
    order = {"type": "category", "categoryorder": "array", "categoryarray": list(names)}
    # Nor any room beside the cells, which points would have.
    ends = [-0.5, len(names) - 0.5]
    named = list(names[::every])
    return chart.axis(title, **order, range=ends, tickvals=named, showgrid=False, ticks="", showline=False)


def _short(value: float) -> str:
    """Return a number in four characters, for a cell; the exact one is to be read by pointing at it."""
    size = abs(value)
    if not np.isfinite(value) or size >= 1e6:
        return ""
    if size < 1:
        return f"{value:.2f}".replace("0.", ".", 1) if size >= 0.005 else "0"
    return f"{value:.1f}" if size < 10 else f"{value:.0f}" if size < 1000 else f"{value / 1000:.0f}k"
