"""A figure's numbers as a table: what is drawn, row by row, for a spreadsheet."""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from probe.finding import Figure

_TAG: Final = re.compile(r"</?(?:b|i|br|sub|sup|extra)\s*/?>")
_KINDS: Final = {"f4": "<f4", "f8": "<f8", "u1": "u1", "i1": "i1", "u2": "<u2", "i2": "<i2", "u4": "<u4", "i4": "<i4"}

Rows = list[tuple[Any, ...]]


def figure_table(figure: Figure) -> tuple[tuple[str, ...], Rows]:
    """Return columns and rows of what a figure draws.

    A point of a line or of bars: `series`, `x`, `y`, and `low` and `high` where it has an interval; a cell of a
    heatmap: `series`, `x`, `y`, `value`. Columns of both kinds stand side by side where a figure has both; what a row
    has not is empty. Lines that only bound an area without a name of their own are left out.
    """
    columns: list[str] = []
    found: list[dict[str, Any]] = []
    data: Any = figure.plotly.get("data") or []
    for number, trace in enumerate(data):
        name = _plain(str(trace.get("name") or f"series {number + 1}"))
        rows = _cells(trace) if trace.get("z") is not None else _points(trace)
        for row in rows:
            found.append({"series": name, **row})
            columns += [key for key in found[-1] if key not in columns]
    return tuple(columns), [tuple(row.get(column) for column in columns) for row in found]


def _points(trace: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if trace.get("hoverinfo") == "skip" and trace.get("showlegend") is False:
        return
    x, y = _listed(trace.get("x")), _listed(trace.get("y"))
    size = max(len(x), len(y))
    error = trace.get("error_y") or {}
    above, below = _listed(error.get("array")), _listed(error.get("arrayminus") or error.get("array"))
    for i in range(size):
        row = {"x": x[i] if x else i, "y": y[i] if y else i}
        if above and row["y"] is not None:
            row |= {"low": _less(row["y"], below[i]), "high": _less(row["y"], above[i], -1)}
        yield row


def _cells(trace: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    z = _array(trace["z"])
    x, y = _listed(trace.get("x")), _listed(trace.get("y"))
    for i, j in np.ndindex(z.shape):
        value = z[i, j]
        yield {
            "x": x[j] if x else trace.get("x0", 0) + j * trace.get("dx", 1),
            "y": y[i] if y else trace.get("y0", 0) + i * trace.get("dy", 1),
            "value": None if value is None or not math.isfinite(value) else float(value),
        }


def _array(values: Any) -> np.ndarray[Any, Any]:
    if isinstance(values, Mapping):
        flat = np.frombuffer(base64.b64decode(str(values["bdata"])), _KINDS[str(values["dtype"])])
        shape = str(values.get("shape", flat.size))
        return flat.reshape([int(size) for size in shape.split(",")])
    return np.array([[np.nan if value is None else value for value in row] for row in values], np.float64)


def _listed(values: Any) -> Sequence[Any]:
    if values is None:
        return []
    if isinstance(values, Mapping):
        listed: list[Any] = _array(values).tolist()
        return listed
    return [_plain(value) if isinstance(value, str) else value for value in values]


def _less(value: Any, by: Any, sign: int = 1) -> Any:
    return None if value is None or by is None else value - sign * by


def _plain(text: str) -> str:
    return html.unescape(_TAG.sub(" ", text)).strip()
