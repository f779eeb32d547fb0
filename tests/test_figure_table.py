"""A figure's table holds what the figure draws, read from the plotly JSON by another way."""

from __future__ import annotations

import base64

import numpy as np

from probe import chart
from probe.figure_table import figure_table


def test_lines_have_their_points_and_intervals() -> None:
    line = chart.line("=1+1 <b>", [64, 128], [0.5, 0.25], low=[0.25, 0.125], high=[0.75, 1.0])
    columns, rows = figure_table(chart.figure("f", "t", "c", [line], {}))
    assert columns == ("series", "x", "y", "low", "high")
    assert rows == [("=1+1 <b>", 64, 0.5, 0.25, 0.75), ("=1+1 <b>", 128, 0.25, 0.125, 1.0)]


def test_cells_have_their_axes_and_what_is_missing_stays_empty() -> None:
    cells = chart.heatmap(["a", "b"], ["0", "1"], [[1.0, np.nan], [0.25, 0.5]], unit="share", hover="")
    columns, rows = figure_table(chart.figure("f", "t", "c", [cells], {}))
    assert columns == ("series", "x", "y", "value")
    assert [row[1:] for row in rows] == [("a", "0", 1.0), ("b", "0", None), ("a", "1", 0.25), ("b", "1", 0.5)]


def test_typed_arrays_are_read_and_places_counted() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    z = {"dtype": "f4", "bdata": base64.b64encode(values.tobytes()).decode(), "shape": "2, 3"}
    trace = {"type": "heatmap", "z": z, "x0": 10, "dx": 2, "y0": 0.5, "dy": 1}
    _, rows = figure_table(chart.figure("f", "t", "c", [trace], {}))
    assert [(x, y) for _, x, y, _ in rows] == [(x, y) for y in (0.5, 1.5) for x in (10, 12, 14)]
    assert [value for *_, value in rows] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_the_edges_of_a_band_are_no_series_and_kinds_stand_side_by_side() -> None:
    data = [*chart.band([0, 1], [0, 0], [1, 1]), chart.line("a", [0], [2.0]), chart.line("b", [0], [1.0], [0.0], [2.0])]
    columns, rows = figure_table(chart.figure("f", "t", "c", data, {}))
    assert columns == ("series", "x", "y", "low", "high")
    assert rows == [("a", 0, 2.0, None, None), ("b", 0, 1.0, 0.0, 2.0)]
