"""What each condition changes at each length and depth: one small map a condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from probe import chart
from probe.analyses.measures.condition_effect import Cell, ConditionEffect, Difference
from probe.finding import Figure

MOST_MAPS: Final = 12
"""Conditions that are drawn; the table holds all."""
_ACROSS: Final = 3
_MOST_WORDS: Final = 6
"""Lengths up to which a map has its numbers in its cells."""
_TOP: Final = 78
_GAP: Final = 64
"""Pixels above the maps, and between two rows of them, for their names and lengths."""


def difference_cells(effects: Sequence[ConditionEffect], by: str) -> Figure:
    """Return the maps of the conditions that were read at several lengths and depths, in the order given.

    Colour is the difference from doing nothing in the quantity that is judged `by`, blue where it is better: points of
    right answers, or nats per token of the right answer's loss. The words of a cell hold both.
    """
    accurate = by == "accuracy"
    there = [effect for effect in effects if effect.by_cell]
    drawn = there[:MOST_MAPS]
    cells = [effect.by_cell if accurate else effect.loss_by_cell for effect in drawn]
    values = [abs(found.difference) for each in cells for found in each.values()]
    most = 100.0 if accurate else max([value for value in values if np.isfinite(value)], default=0.0) or 1.0
    lengths = sorted({at for effect in drawn for at, _ in effect.by_cell})
    depths = sorted({at for effect in drawn for _, at in effect.by_cell})
    across = min(_ACROSS, len(drawn))
    rows = -(-len(drawn) // across)
    map_height = int(np.clip(26 * len(depths), 84, 260))
    plot_height = rows * map_height + (rows - 1) * _GAP
    data: list[chart.Trace] = []
    layout: dict[str, Any] = {"height": _TOP + plot_height + 64, "margin": {"l": 64, "r": 92, "t": _TOP, "b": 64}}
    names: list[dict[str, Any]] = []
    for i, (effect, each) in enumerate(zip(drawn, cells, strict=True)):
        row, column = divmod(i, across)
        number = "" if i == 0 else str(i + 1)
        data.append(_map(effect, each, lengths, depths, accurate, most, number, bar=i == 0))
        left, right = (column + 0.03) / across, (column + 0.97) / across
        top = 1 - row * (map_height + _GAP) / plot_height
        bottom = top - map_height / plot_height
        below = i + across >= len(drawn)
        layout[f"xaxis{number}"] = chart.axis(
            "prompt length (tokens)" if below else "", type="category", anchor=f"y{number}", domain=[left, right],
            showgrid=False, ticks="", showline=False, tickangle=0,
        )  # fmt: skip
        layout[f"yaxis{number}"] = chart.axis(
            "depth" if column == 0 else "", type="category", anchor=f"x{number}", domain=[max(bottom, 0), top],
            autorange="reversed", showgrid=False, ticks="", showline=False, showticklabels=column == 0,
        )  # fmt: skip
        names.append(
            {
                "text": f"<b>{chart.shown(effect.name)}</b>", "x": left, "y": top, "xref": "paper", "yref": "paper",
                "xanchor": "left", "yanchor": "bottom", "showarrow": False, "font": {"size": 12, "color": chart.INK},
            }
        )  # fmt: skip
    quantity = "right answers" if accurate else "the right answer's loss"
    more = f" The first {MOST_MAPS} of {len(there)} conditions are drawn." if len(there) > len(drawn) else ""
    return chart.figure(
        "conditions_by_length_and_depth",
        f"What each condition changes in {quantity}, by length and depth",
        f"{'Share of prompts answered right' if accurate else 'Mean loss of the right answer'} with a condition less "
        "without it, the same prompts both ways, at each length (across) and depth (down, from first to last); blue is "
        f"better, {'in percentage points' if accurate else 'in nats per token'}. Cells hold few prompts: the table "
        f"behind the claim has their number and intervals.{more}",
        data,
        {**layout, "annotations": names},
    )


def _map(
    effect: ConditionEffect,
    of: Mapping[Cell, Difference],
    lengths: Sequence[float],
    depths: Sequence[float],
    accurate: bool,
    most: float,
    number: str,
    *,
    bar: bool,
) -> chart.Trace:
    array = np.array([[of[x, y].difference if (x, y) in of else np.nan for x in lengths] for y in depths])
    digits = 0 if accurate else 2
    words = [
        ["" if not np.isfinite(v) else f"{v:+.{digits}f}" if round(v, digits) else "0" for v in row]
        for row in array.tolist()
    ]
    made = chart.heatmap(
        [f"{x:,.0f}" for x in lengths],
        [f"{y:.2g}" for y in depths],
        array,
        unit="points" if accurate else "nats per token",
        hover=chart.shown(effect.name) + ", %{x} tokens, depth %{y}: %{customdata}",
        text=words if len(lengths) <= _MOST_WORDS else None,
        scale=chart.SUCCESS,
        low=-most,
        high=most,
    )
    said = [[chart.shown(_said(effect, (x, y))) for x in lengths] for y in depths]
    return made | {
        "name": effect.name,
        "customdata": said,
        "reversescale": not accurate,
        "showscale": bar,
        "xaxis": f"x{number}",
        "yaxis": f"y{number}",
    }


def _said(effect: ConditionEffect, at: Cell) -> str:
    """Return a cell in words: both quantities with and without the condition, and of how many prompts."""
    right, loss = effect.by_cell.get(at), effect.loss_by_cell.get(at)
    said = [] if right is None else [f"{right.value:.0f} % right, {right.before:.0f} % without it"]
    said += [] if loss is None else [f"loss {loss.value:.2f}, {loss.before:.2f} without it"]
    return "; ".join([*said, *([] if right is None else [f"n = {right.n}"])])
