"""What the page *Attention* shows is what the trace holds, and it says which level that is."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probe.analyses.charts.attention_colours import colours, encoded
from probe.analyses.charts.attention_map import figure_of
from probe.analyses.measures.attention_picture import MOST_CELLS, Picture, attention_picture
from probe.dashboard.application.opened import Opened
from probe.dashboard.application.panel import Panel
from probe.dashboard.attention import attention


def content(path: Path, search: str) -> dict[str, Any]:
    """Return what the page shows at an address: by id its words, its notes and its stores, and its `panel`."""
    _, items = attention(Opened([path])).shown(search)
    found: dict[str, Any] = {"panel": next((item for item in items if isinstance(item, Panel)), None), "items": items}
    for item in items:
        name = getattr(item, "id", "")
        found[name.removeprefix("attention-")] = getattr(item, "data", None) or getattr(item, "children", None)
    return found


def drawn(path: Path, search: str) -> dict[str, Any]:
    """Return the figure at an address."""
    panel = content(path, search)["panel"]
    assert panel is not None
    figure: dict[str, Any] = panel.figure.plotly
    return figure


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
    search = f"?unit=full&layer=0&head={head}&queries=50-290&keys=40-296&scale={scale}"
    page = content(small.path, search)
    figure = page["panel"].figure.plotly
    np.testing.assert_allclose(decoded(figure), small.p[head][50:290, 40:296], rtol=2e-5, atol=2e-6)
    assert "Exact" in page["words"]
    assert "1 query × 1 key" in page["words"]
    assert figure["data"][0]["x0"] == 40
    assert figure["layout"]["yaxis"]["range"] == [289.5, 49.5]


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_more_cells_go_as_steps_of_colour_within_half_a_step(small: Any, scale: str) -> None:
    figure = drawn(small.path, f"?unit=full&layer=0&head=1&scale={scale}")
    assert figure["data"][0]["z"]["dtype"] == "u1"
    there, read = small.p[1], decoded(figure)
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
    page = content(small.path, f"?unit=full&layer=1&head=1&which={which}&cell={tokens}&scale=linear")
    starts = range(0, len(small.p[1]), tokens)
    blocks = [[small.p[1][i : i + tokens, j : j + tokens] for j in starts] for i in starts]
    pool = (lambda block: block.sum(1).mean()) if which == "mean" else np.max
    wanted = np.array([[pool(block) for block in row] for row in blocks])
    np.testing.assert_allclose(decoded(page["panel"].figure.plotly), wanted, atol=2e-6)
    assert f"One cell covers {tokens} × {tokens} tokens" in page["words"]
    assert ("queries and keys of layer 1 were not kept" in page["notes"]) == (tokens == 2)


@pytest.mark.parametrize("which", ["mean", "max"])
def test_the_whole_of_a_long_prompt_is_its_coarse_map(long: Any, which: str) -> None:
    found = attention_picture(Opened([long.path]).run().trace("long"), 1, 0, which=which)
    blocks = (long.mean if which == "mean" else long.largest)[0].reshape(256, 8, 256, 8)
    wanted = blocks.sum(3).mean(1) if which == "mean" else blocks.max((1, 3))
    np.testing.assert_allclose(found.values, wanted, rtol=1e-5)
    assert "512 × 512 tokens" in found.words


def test_a_window_of_a_long_prompt_is_exact(long: Any) -> None:
    trace = Opened([long.path]).run().trace("long")
    found = attention_picture(trace, 1, 0, queries=(131_000, 131_072), keys=(52_000, 52_100))
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
    found = attention_picture(trace, 1, 0, queries=ranges, keys=ranges, which=which)
    assert max(found.values.shape) <= MOST_CELLS
    tokens = found.cell_tokens
    assert tokens == {1_025: 2, 2_048: 3}[side]
    exact = trace.window(1, 0, queries=slice(*ranges), keys=slice(*ranges)).astype(np.float64)
    first = exact[:tokens, :tokens]
    assert found.values[0, 0] == pytest.approx(first.sum(1).mean() if which == "mean" else first.max(), rel=1e-5)
    assert f"One cell covers {tokens} × {tokens} tokens" in found.words


def test_beyond_what_an_exact_window_may_cover_the_stored_level_is_shown_and_says_so(long: Any) -> None:
    trace = Opened([long.path]).run().trace("long")
    found = attention_picture(trace, 1, 0, queries=(0, 2_049), keys=(0, 2_049))
    assert not found.exact
    assert found.cell_tokens == 64
    assert any("2,048 × 2,048 tokens or fewer for exact" in note for note in found.notes)


@pytest.mark.parametrize(("keys", "left_out"), [((0, 100), 4), ((2, 100), 2), ((4, 100), 0)])
def test_without_the_sink_its_keys_are_left_out(small: Any, keys: tuple[int, int], left_out: int) -> None:
    trace = Opened([small.path]).run().trace("full")
    found = attention_picture(trace, 0, 0, queries=(0, 300), keys=keys, sink=False)
    wanted = small.p[0][:, keys[0] : keys[1]].copy()
    wanted[:, :left_out] = 0
    np.testing.assert_allclose(found.values, wanted, atol=2e-6)
    assert any("left out" in note for note in found.notes) == bool(left_out)


def test_a_number_that_is_not_finite_has_a_colour_of_its_own() -> None:
    values = np.array([[0.5, 0.0], [np.nan, 1.0]], np.float32)
    found = Picture(values, (0, 2), (0, 2), 1, True, "")
    scales: tuple[Any, ...] = ("log", "linear")
    for scale in scales:
        sent = encoded(values, colours(values, scale))
        assert (sent == 255).tolist() == [[False, False], [True, False]]
        assert (sent == 0).tolist() == [[False, True], [False, False]]
        assert "not finite" in figure_of(found, scale=scale).plotly["data"][0]["colorbar"]["ticktext"]


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ("?unit=bare", "no attention map of layer 0 was captured.*capture attention_map"),
        ("?unit=nothing", "there is no unit 'nothing'"),
        ("?unit=../../etc", "there is no unit"),
        ("?unit=full&layer=9", "no layer 9 in this trace; there are 0, 1"),
        ("?unit=full&layer=1&head=2", "layer 1 has no head 2; its heads are 0 to 1"),
        ("?unit=full&queries=0-301", "outside of the prompt; it ends at 300"),
        ("?layer=x", "layer='x'"),
        ("?queries=9-2", "queries='9-2'"),
        ("?which=sum", "mean or max"),
        ("?sink=maybe", "on or off"),
        ("?head=-1", "whole number"),
        ("?colour=red", "'colour', which means nothing"),
        ("?cell=" + "9" * 400, "whole number"),
    ],
)
def test_where_there_is_nothing_to_show_the_page_says_what_to_do(small: Any, search: str, said: str) -> None:
    page = content(small.path, search)
    assert page["panel"] is None
    assert re.search(said, str(page["items"]))


def test_a_private_trace_shows_its_map_and_no_word(small: Any) -> None:
    page = content(small.path, "?unit=private")
    assert page["panel"] is not None
    assert (page["words-drawn"]["queries"], page["words-drawn"]["keys"]) == ([], [])
    assert "private" in page["notes"]


@pytest.mark.parametrize("search", ["?unit=full&cell=2", "?unit=full", "?unit=full&queries=0-20&keys=100-130"])
def test_no_list_of_numbers_goes_to_the_browser(small: Any, search: str) -> None:
    sizes: list[int] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for each in value.values():
                walk(each)
        elif isinstance(value, list):
            sizes.append(sum(isinstance(each, float) for each in value))
            for each in value:
                walk(each)

    walk(drawn(small.path, search))
    assert max(sizes) < 20


@pytest.mark.parametrize("cell", ["auto", 64, 128])
@pytest.mark.parametrize("ranges", ["", "0-65536", "1000-3048"])
def test_an_answer_is_small_at_any_length(long: Any, cell: str | int, ranges: str) -> None:
    page = content(long.path, f"?layer=1&cell={cell}&queries={ranges}&keys={ranges}")
    assert len(json.dumps([page["panel"].figure.plotly, page["words-drawn"]])) < 1.4e6


@pytest.mark.parametrize("which", ["mean", "max"])
@pytest.mark.parametrize(("cell", "ranges"), [("auto", (50, 290)), ("8", (0, 300))])
def test_the_profiles_are_what_keys_get_and_queries_give(small: Any, which: str, cell: str, ranges: Any) -> None:
    search = f"?unit=full&layer={int(cell != 'auto')}&head=1&cell={cell}&which={which}&scale=linear"
    start, stop = ranges
    data = drawn(small.path, f"{search}&queries={start}-{stop}")["data"]
    size = 1 if cell == "auto" else int(cell)
    p = small.p[1][start:stop]
    columns = np.arange(0, 300, size)
    rows = np.arange(0, stop - start, size)
    if which == "mean":
        to_keys = np.add.reduceat(p.sum(0) / (stop - start), columns)
        from_queries = np.add.reduceat(p.sum(1), rows) / np.diff([*rows, stop - start])
    else:
        to_keys, from_queries = np.maximum.reduceat(p.max(0), columns), np.maximum.reduceat(p.max(1), rows)
    for trace, side, wanted in ((data[1], "y", to_keys), (data[2], "x", from_queries)):
        read = np.frombuffer(base64.b64decode(trace[side]["bdata"]), np.float32)
        np.testing.assert_allclose(np.nan_to_num(read), wanted, atol=3e-6)


def test_the_table_is_the_exact_numbers(small: Any) -> None:
    page = content(small.path, "?unit=full&layer=0&head=2&queries=50-290&keys=40-296")
    columns, rows = page["panel"].rows()
    assert (columns[0], columns[1], columns[-1]) == ("query", "key 40", "key 295")
    assert [row[0] for row in rows] == list(range(50, 290))
    np.testing.assert_allclose(np.array(rows)[:, 1:], small.p[2][50:290, 40:296], rtol=2e-5, atol=1e-9)


def test_every_span_can_be_jumped_to_as_query_as_key_and_as_both(small: Any) -> None:
    said = str(content(small.path, "?unit=full&layer=0&keys=3-9")["items"])
    for parts in ("queries=96-124&keys=96-124", "queries=96-124&keys=3-9", "keys=96-124"):
        assert f"href='/attention?run=run&unit=full&layer=0&head=0&{parts}'" in said


@pytest.mark.parametrize(
    "search", ["", "?layer=0&head=2&queries=50-90&keys=40-96&scale=linear&sink=off", "?layer=1&cell=4&which=max"]
)
def test_the_lines_make_the_figure_of_a_run_and_of_a_saved_trace(small: Any, tmp_path: Path, search: str) -> None:
    saved = Opened([small.path]).run().trace("full").save(tmp_path / "saved")
    for path in (small.path, saved):
        panel = content(path, search)["panel"]
        *before, last = panel.python.split("\n")
        names: dict[str, Any] = {}
        exec("\n".join([*before, f"made = {last}"]), names)
        assert names["made"] == panel.figure
