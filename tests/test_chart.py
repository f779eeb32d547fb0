from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest

from probe import chart


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<s>", "&lt;s&gt;"),
        ("<a href='javascript:x'>y</a>", "&lt;a href='javascript:x'&gt;y&lt;/a&gt;"),
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("a&b", "a&amp;b"),
    ],
)
def test_any_text_is_shown_as_it_is(text, expected):
    assert chart.shown(text) == expected


@pytest.mark.parametrize("hostile", ["</script><script>alert(1)</script>", "<b>x</b>", "<br>"])
def test_titles_axes_and_legends_carry_no_markup_of_their_text(hostile):
    made = chart.figure(
        "x",
        hostile,
        hostile,
        [chart.line(hostile, [0], [1]), chart.line("b", [0], [1])],
        {"xaxis": chart.axis(hostile)},
    )
    layout = made.plotly["layout"]
    for text in (layout["title"]["text"], layout["xaxis"]["title"]["text"], made.plotly["data"][0]["name"]):
        assert hostile not in text
        assert chart.shown(hostile) in text


def test_numbers_are_rounded_and_what_is_not_finite_becomes_none():
    assert chart.numbers([[1 / 3, np.nan], [np.inf, 12345.678]]) == [[0.3333, None], [None, 12350.0]]


def test_a_heatmap_too_large_for_a_figure_is_refused():
    names = [str(i) for i in range(257)]
    with pytest.raises(ValueError, match="pool it"):
        chart.heatmap(names, names, np.zeros((257, 257)), unit="", hover="")


@pytest.mark.parametrize(("num_heads", "shown"), [(16, True), (32, False)])
def test_cells_hold_numbers_only_where_they_can_be_read(num_heads, shown):
    data, layout = chart.atlas(np.zeros((4, num_heads)), np.ones((4, num_heads), bool), unit="score", marked=[(1, 2)])
    go.Figure({"data": data, "layout": layout})
    assert ("text" in data[0]) == shown


def test_heads_that_a_layer_lacks_stay_empty():
    data, _ = chart.atlas([[0.5, 0.5], [0.5, 0.5]], [[True, False], [True, True]], unit="score")
    assert data[0]["z"][0] == [0.5, None]


def test_an_intervals_bars_never_point_inwards():
    made = chart.line("x", [0], [0.5], [0.6], [0.4])
    assert made["error_y"]["array"] == [0.0]
    assert made["error_y"]["arrayminus"] == [0.0]
