"""Spans along both axes of a map: a stripe for each, and its name where there is room for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from probe.chart import shown
from probe.sample import Span

MOST_SPANS: Final = 64
"""Spans drawn on an axis, at most."""

_NAME: Final = 24
_INKS: Final = ("#d1560f", "#0b8fd6", "#0a8f6c", "#b45fd0", "#b8860b", "#c43c73")


def span_stripes(
    spans: Sequence[Span], keys: tuple[int, int], queries: tuple[int, int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return plotly's shapes and annotations: above the map for keys, to its right for queries, inside of the ranges.

    A stripe is at least as wide as can be seen. An annotation can be clicked, and is named `x:START-STOP` or
    `y:START-STOP` after its axis and span.
    """
    shapes: list[dict[str, Any]] = []
    names: list[dict[str, Any]] = []
    for side, positions in (("x", keys), ("y", queries)):
        taken = [-1.0, -1.0]
        inside = [
            (index, span)
            for index, span in sorted(enumerate(spans), key=lambda each: each[1].start)
            if len(span) and span.start < positions[1] and span.stop > positions[0]
        ]
        for index, span in inside[:MOST_SPANS]:
            start, stop = max(span.start, positions[0]) - 0.5, min(span.stop, positions[1]) - 0.5
            ink = _INKS[index % len(_INKS)]
            along = {f"{side}0": start, f"{side}1": stop, f"{side}ref": side}
            across: dict[str, Any] = {"yref": "y domain", "y0": 1.008, "y1": 1.026}
            if side == "y":
                across = {"xref": "x domain", "x0": 1.005, "x1": 1.017}
            line = {"width": 1.5, "color": ink}
            shapes.append({"type": "rect", **along, **across, "fillcolor": ink, "line": line, "layer": "above"})
            middle = (start + stop) / 2
            share = (middle - positions[0]) / (positions[1] - positions[0])
            half = min(len(span.name), _NAME) * (0.0055 if side == "x" else 0.009)
            row = next((row for row, end in enumerate(taken) if share - half > end), None)
            if row is None:
                continue
            taken[row] = share + half
            place: dict[str, Any] = {"x": middle, "y": 1.026 + 0.034 * row, "xref": "x", "yref": "y domain"}
            place["yanchor"] = "bottom"
            if side == "y":
                place = {"x": 1.019 + 0.022 * row, "y": middle, "xref": "x domain", "yref": "y", "xanchor": "left"}
                place["textangle"] = 90
            short = span.name if len(span.name) <= _NAME else span.name[: _NAME - 1] + "…"
            name = f"{side}:{span.start}-{span.stop}"
            seen = {"text": shown(short), "showarrow": False, "font": {"size": 11, "color": ink}}
            names.append({**place, **seen, "name": name, "captureevents": True, "borderpad": 0})
    return shapes, names
