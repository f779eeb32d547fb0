"""What the page *Attention* shows is what the trace holds, and it says which level that is."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import numpy as np
import pytest

from probe.dashboard.application.opened import Opened
from probe.dashboard.attention import moved, shown
from probe.dashboard.attention_map.attention_figure import attention_figure, colours, encoded
from probe.dashboard.attention_map.picture import MOST_CELLS, Picture, picture
from probe.dashboard.attention_map.view import View
from probe.errors import UsageError


def decoded(figure: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Return the numbers that a browser reads back from a figure, as attention.js does."""
    z = figure["data"][0]["z"]
    kind = {"f4": np.float32, "u1": np.uint8}[z["dtype"]]
    shape = tuple(int(size) for size in z["shape"].split(","))
    values = np.frombuffer(base64.b64decode(z["bdata"]), kind).reshape(shape).astype(np.float64)
    how = figure["layout"]["meta"]["colours"]
    if not how["steps"]:
        values = 10**values if how["scale"] == "log" else values
        return np.nan_to_num(values)
    share = (values - 1) / (how["last"] - 1)
    log = how["low"] * (how["high"] / max(how["low"], 1e-30)) ** share
    return np.where(values == 0, 0, log if how["scale"] == "log" else share * how["high"])


@pytest.mark.parametrize("scale", ["log", "linear"])
@pytest.mark.parametrize("head", [0, 3])
def test_an_exact_window_is_the_softmax_of_queries_and_keys(small: Any, head: int, scale: str) -> None:
    page = shown(Opened([small.path]), View("full", 0, head, queries=(50, 290), keys=(40, 296), scale=scale))
    assert page.figure is not None
    np.testing.assert_allclose(decoded(page.figure), small.p[head][50:290, 40:296], rtol=2e-5, atol=2e-6)
    assert "Exact" in page.words
    assert "1 query × 1 key" in page.words
    assert page.figure["data"][0]["x0"] == 40
    assert page.figure["layout"]["yaxis"]["range"] == [289.5, 49.5]


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_more_cells_go_as_steps_of_colour_within_half_a_step(small: Any, scale: str) -> None:
    page = shown(Opened([small.path]), View("full", 0, 1, scale=scale))
    assert page.figure is not None
    assert page.figure["data"][0]["z"]["dtype"] == "u1"
    there, read = small.p[1], decoded(page.figure)
    high, seen = there.max(), there > 0
    assert not read[~seen].any()
    if scale == "linear":
        np.testing.assert_allclose(read, there, atol=high / 253)
    else:
        clamped = np.maximum(there[seen], high * 1e-5)
        np.testing.assert_allclose(np.log(read[seen] / clamped), 0, atol=np.log(1e5) / 253)


@pytest.mark.parametrize("which", ["mean", "max"])
@pytest.mark.parametrize("tokens", [2, 4, 8])
def test_a_pooled_level_is_the_map_of_its_block_size(small: Any, which: str, tokens: int) -> None:
    page = shown(Opened([small.path]), View("full", 1, 1, which=which, cell_tokens=tokens, scale="linear"))
    assert page.figure is not None
    starts = range(0, len(small.p[1]), tokens)
    blocks = [[small.p[1][i : i + tokens, j : j + tokens] for j in starts] for i in starts]
    pool = (lambda block: block.sum(1).mean()) if which == "mean" else np.max
    wanted = np.array([[pool(block) for block in row] for row in blocks])
    np.testing.assert_allclose(decoded(page.figure), wanted, atol=2e-6)
    assert f"One cell covers {tokens} × {tokens} tokens" in page.words
    assert any("queries and keys of layer 1 were not kept" in note for note in page.notes) == (tokens == 2)


@pytest.mark.parametrize("which", ["mean", "max"])
def test_the_whole_of_a_long_prompt_is_its_coarse_map(long: Any, which: str) -> None:
    found = picture(Opened([long.path]).run().trace("long"), View(layer=1, which=which))
    blocks = (long.mean if which == "mean" else long.largest)[0].reshape(256, 8, 256, 8)
    wanted = blocks.sum(3).mean(1) if which == "mean" else blocks.max((1, 3))
    np.testing.assert_allclose(found.values, wanted, rtol=1e-5)
    assert "512 × 512 tokens" in found.words


def test_a_window_of_a_long_prompt_is_exact(long: Any) -> None:
    found = picture(Opened([long.path]).run().trace("long"), View(layer=1, queries=(131_000, 131_072), keys=(52_000, 52_100)))
    assert found.exact
    query, key = long.query[0][131_000 // 64 :], long.key[0][52_000 // 64 :]
    rows, columns = np.arange(131_000, 131_072) // 64 - 131_000 // 64, np.arange(52_000, 52_100) // 64 - 52_000 // 64
    wanted = np.exp((query[rows] @ key[columns].T) - long.log_z[0][131_000:, None])
    np.testing.assert_allclose(found.values, wanted, rtol=1e-4)


@pytest.mark.parametrize("side", [1_025, 2_048])
@pytest.mark.parametrize("which", ["mean", "max"])
def test_a_large_exact_window_is_pooled_from_exact_numbers(long: Any, side: int, which: str) -> None:
    trace = Opened([long.path]).run().trace("long")
    ranges = (100_000, 100_000 + side)
    found = picture(trace, View(layer=1, queries=ranges, keys=ranges, which=which))
    assert max(found.values.shape) <= MOST_CELLS
    assert found.cell_tokens == 2
    exact = trace.window(1, 0, queries=slice(*ranges), keys=slice(*ranges)).astype(np.float64)
    first = exact[:2, :2]
    assert found.values[0, 0] == pytest.approx(first.sum(1).mean() if which == "mean" else first.max(), rel=1e-5)
    assert "One cell covers 2 × 2 tokens" in found.words


def test_beyond_what_an_exact_window_may_cover_the_stored_level_is_shown_and_says_so(long: Any) -> None:
    found = picture(Opened([long.path]).run().trace("long"), View(layer=1, queries=(0, 2_049), keys=(0, 2_049)))
    assert not found.exact
    assert found.cell_tokens == 64
    assert any("2,048 × 2,048 tokens or fewer for exact" in note for note in found.notes)


@pytest.mark.parametrize(("keys", "left_out"), [((0, 100), 4), ((2, 100), 2), ((4, 100), 0)])
def test_without_the_sink_its_keys_are_left_out(small: Any, keys: tuple[int, int], left_out: int) -> None:
    trace = Opened([small.path]).run().trace("full")
    found = picture(trace, View("full", 0, queries=(0, 300), keys=keys, sink=False))
    wanted = small.p[0][:, keys[0] : keys[1]].copy()
    wanted[:, :left_out] = 0
    np.testing.assert_allclose(found.values, wanted, atol=2e-6)
    assert any("left out" in note for note in found.notes) == bool(left_out)


def test_a_number_that_is_not_finite_has_a_colour_of_its_own() -> None:
    values = np.array([[0.5, 0.0], [np.nan, 1.0]], np.float32)
    found = Picture(values, (0, 2), (0, 2), 1, True, "")
    for scale in ("log", "linear"):
        sent = encoded(values, colours(found, scale))
        assert (sent == 255).tolist() == [[False, False], [True, False]]
        assert (sent == 0).tolist() == [[False, True], [False, False]]
        assert "not finite" in attention_figure(found, scale)["data"][0]["colorbar"]["ticktext"]


@pytest.mark.parametrize(
    ("view", "said"),
    [
        (View("bare"), "no attention map of layer 0 was captured.*capture attention_map"),
        (View("nothing"), "there is no unit 'nothing'"),
        (View("../../etc"), "there is no unit"),
        (View("full", 9), "no layer 9 in this trace; there are 0, 1"),
        (View("full", 1, 2), "layer 1 has no head 2; its heads are 0 to 1"),
        (View("full", queries=(0, 301)), "outside of the prompt; it ends at 300"),
    ],
)
def test_where_there_is_nothing_to_show_the_page_says_what_to_do(small: Any, view: View, said: str) -> None:
    page = shown(Opened([small.path]), view)
    assert page.figure is None
    assert re.search(said, page.words)


def test_a_private_trace_shows_its_map_and_no_word(small: Any) -> None:
    page = shown(Opened([small.path]), View("private"))
    assert page.figure is not None
    assert page.labels == {"queries": [], "keys": []}
    assert any("private" in note for note in page.notes)


@pytest.mark.parametrize(
    "view",
    [
        View("full", 0, cell_tokens=2),
        View("full", 0),
        View("full", 0, queries=(0, 20), keys=(100, 130)),
    ],
)
def test_no_list_of_numbers_goes_to_the_browser(small: Any, view: View) -> None:
    page = shown(Opened([small.path]), view)
    sizes: list[int] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for each in value.values():
                walk(each)
        elif isinstance(value, list):
            sizes.append(sum(isinstance(each, float) for each in value))
            for each in value:
                walk(each)

    walk(page.figure)
    assert max(sizes) < 20


@pytest.mark.parametrize("cell", [None, 64, 128])
@pytest.mark.parametrize("ranges", [None, (0, 65_536), (1_000, 3_048)])
def test_an_answer_is_small_at_any_length(long: Any, cell: int | None, ranges: tuple[int, int] | None) -> None:
    page = shown(Opened([long.path]), View(layer=1, cell_tokens=cell, queries=ranges, keys=ranges))
    assert len(json.dumps([page.figure, page.labels])) < 1.5e6


EXTENT = 1_000
HIGH = {"yaxis.range[0]": 19.6, "yaxis.range[1]": 9.6}
STILL = {"xaxis.range[0]": -0.5, "xaxis.range[1]": 999.5}


@pytest.mark.parametrize(
    ("changed", "value", "queries", "keys"),
    [
        ("zoom", {"xaxis.range[0]": 99.6, "xaxis.range[1]": 199.5}, None, (100, 200)),
        ("zoom", {"yaxis.range[0]": 199.5, "yaxis.range[1]": -20}, (0, 200), None),
        ("zoom", {"xaxis.range[1]": 5000, "xaxis.range[0]": -5, **HIGH}, (10, 20), None),
        ("click", {"points": [{"x": 500, "y": 990}]}, (750, 1_000), (375, 625)),
        ("whole", 1, None, None),
        ("zoom", {"xaxis.autorange": True, "yaxis.autorange": True}, None, None),
    ],
)  # fmt: skip
def test_zooming_gives_ranges_inside_of_the_prompt(changed: str, value: Any, queries: Any, keys: Any) -> None:
    after = moved(View(), changed, value, EXTENT)
    assert after is not None
    assert (after.queries, after.keys) == (queries, keys)


@pytest.mark.parametrize("value", [{"autosize": True}, STILL, {"dragmode": "pan"}])
def test_what_changes_nothing_draws_nothing(value: dict[str, Any]) -> None:
    assert moved(View(), "zoom", value, EXTENT) is None


@pytest.mark.parametrize(
    "view",
    [
        View(),
        View("needle-a.b_c", 3, 17, "max", 128, (5, 900), (0, 2), "linear", False),
        View("u", 0, 0, queries=(0, 1)),
    ],
)
def test_the_address_holds_the_whole_view(view: View) -> None:
    assert View.from_query(view.to_query()) == view


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("?layer=x", "layer='x'"),
        ("?queries=9-2", "queries='9-2'"),
        ("?which=sum", "mean or max"),
        ("?sink=maybe", "on or off"),
        ("?head=-1", "whole number"),
        ("?colour=red", "'colour', which means nothing"),
        ("?cell=" + "9" * 400, "whole number"),
    ],
)
def test_an_address_that_says_nothing_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        View.from_query(text)


@pytest.mark.parametrize(
    ("changed", "value", "after"),
    [
        ("unit", "b", View("b", 3, 5, "max")),
        ("layer", "2", View("a", 2, 0, "max", queries=(0, 9))),
        ("head", "7", View("a", 3, 7, "max", 64, (0, 9))),
        ("cell", "auto", View("a", 3, 5, "max", None, (0, 9))),
        ("cell", "128", View("a", 3, 5, "max", 128, (0, 9))),
        ("sink", False, View("a", 3, 5, "max", 64, (0, 9), sink=False)),
        ("out", 1, View("a", 3, 5, "max", None, (0, 36), None)),
    ],
)
def test_a_control_changes_its_own_part_and_what_cannot_stay(changed: str, value: Any, after: View) -> None:
    assert moved(View("a", 3, 5, "max", 64, (0, 9)), changed, value, EXTENT) == after
