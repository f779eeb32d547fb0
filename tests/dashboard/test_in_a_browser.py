"""In a real browser the page shows its picture and its words, runs no token, and asks nobody else for anything."""

from __future__ import annotations

import threading
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

from probe.analyses.measures.token_labels import seen
from probe.dashboard.attention import attention
from tests.dashboard.conftest import HOSTILE, logged, wait

pytestmark = pytest.mark.browser


def drawn(browser: Any, words: str) -> None:
    """Wait until the picture is there, and the words beside it."""
    wait(
        browser,
        lambda b: (
            b.find_elements("css selector", "#attention-map .heatmaplayer image")
            and words in b.find_element("id", "attention-words").text
        ),
    )


AXES = ("xaxis", "yaxis")


def shows(browser: Any, queries: Any, keys: Any) -> bool:
    """Return whether the picture drawn is that of these positions."""
    meta = browser.execute_script(
        "const there = document.querySelector('#attention-map .js-plotly-plot');"
        "return there && there._fullLayout && there._fullLayout.meta;"
    )
    return bool(meta) and meta["queries"] == list(queries) and meta["keys"] == list(keys)


def asked(browser: Any) -> list[list[int]]:
    """Return the positions of queries and keys that the address says."""
    parts = dict(parse_qsl(urlsplit(browser.current_url).query))
    return [[int(end) for end in parts[name].split("-")] for name in ("queries", "keys")]


def read_cell(browser: Any) -> str:
    """Point at the middle of the map and return what is said of it."""
    middle = browser.find_element("css selector", "#attention-map .nsewdrag[data-subplot=xy]")
    ActionChains(browser, duration=20).move_to_element(middle).perform()
    wait(browser, lambda b: "value" in b.find_element("id", "attention-reading").text)
    said: str = browser.find_element("id", "attention-reading").get_attribute("textContent")
    return said


def test_the_page_opens_and_asks_nobody_else(browser: Any, long: Any, serve: Any) -> None:
    with serve(long.path) as address:
        logged(browser)
        browser.get(f"{address}/attention?layer=1")
        drawn(browser, "One cell covers 512 × 512 tokens")
        # In one go: the figure may be drawn again between two looks.
        said = (
            "return [...document.querySelectorAll('#attention-map .annotation-text')].map((each) => each.textContent)"
        )
        names = browser.execute_script(said)
        assert names == ["needle", "question"] * 2
        # The name of a span above the map leads to its keys.
        browser.find_element("css selector", "#attention-map .annotation-text").click()
        drawn(browser, "One cell covers 512 × 512 tokens")
        wait(browser, lambda b: b.current_url.endswith("/attention?layer=1&keys=51996-52044"))
        hosts, complaints = logged(browser)
    assert hosts == {"127.0.0.1"}
    assert complaints == []


def test_a_link_shows_the_same_view_and_a_click_zooms(browser: Any, long: Any, serve: Any) -> None:
    with serve(long.path) as address:
        browser.get(f"{address}/attention?layer=1&head=1&queries=1000-3000&keys=0-2000")
        drawn(browser, "One cell covers 3 × 3 tokens")
        assert browser.find_element("id", "attention-head").get_attribute("value") == "1"
        ActionChains(browser, duration=20).click(
            browser.find_element("css selector", "#attention-map .nsewdrag")
        ).perform()
        drawn(browser, "1 query × 1 key")
        zoomed = browser.current_url
        assert "queries=1" in zoomed
        browser.refresh()
        drawn(browser, "1 query × 1 key")
        assert browser.current_url == zoomed
        browser.back()
        drawn(browser, "One cell covers 3 × 3 tokens")


def test_hostile_tokens_are_shown_and_none_runs(browser: Any, small: Any, serve: Any) -> None:
    with serve(small.path) as address:
        browser.get(f"{address}/attention?unit=full&layer=0&queries=298-300&keys=0-1")
        drawn(browser, "1 query × 1 key")
        for token in range(len(HOSTILE)):
            key = small.tokens.index(token)
            # From elsewhere, so that the cursor comes anew.
            ActionChains(browser, duration=20).move_to_element(browser.find_element("id", "nav-attention")).perform()
            browser.execute_script(
                f"window.explorer.go('/attention?unit=full&layer=0&queries=299-300&keys={key}-{key + 1}')"
            )
            wait(browser, lambda b, key=key: shows(b, [299, 300], [key, key + 1]))
            reading = read_cell(browser)
            told = f"key    {key}  {seen(HOSTILE[token])}"
            assert reading.split("\n")[1].removesuffix("  (needle)").removesuffix("  (<b>q</b>)") == told
            shown = float(reading.rpartition("value  ")[2])
            assert shown == pytest.approx(small.p[0][299, key], rel=1e-4)
        assert browser.execute_script("return window.ran") is None


def test_a_figure_that_fits_itself_to_the_window_does_not_undo_the_address(
    browser: Any, long: Any, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, go_on = attention.content, threading.Event()

    def late(self: attention, view: Any) -> Any:
        if not view["queries"]:
            assert go_on.wait(60)
        return content(self, view)

    monkeypatch.setattr(attention, "content", late)
    with serve(long.path) as address:
        browser.get(f"{address}/attention?layer=1&head=1&queries=1000-3000&keys=0-2000")
        drawn(browser, "One cell covers 3 × 3 tokens")
        # What the figure says when it has fitted itself, while the answer for another address is on its way.
        browser.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "window.explorer.go('/attention?layer=1&head=0');"
            "setTimeout(() => Plotly.relayout(document.querySelector('#attention-map .js-plotly-plot'), "
            "{autosize: true, hovermode: 'x'}).then(() => fetch('/favicon.ico')).then(() => done()), 300);"
        )
        go_on.set()
        drawn(browser, "One cell covers 512 × 512 tokens")
        assert browser.current_url == f"{address}/attention?layer=1&head=0"


RANGES = (
    ("said", [{"xaxis.range[0]": 99.6, "xaxis.range[1]": 199.5}, "xaxis", [0, 1000], 1000], [100, 200]),
    ("said", [{"yaxis.range[0]": 199.5, "yaxis.range[1]": -20}, "yaxis", [0, 1000], 1000], [0, 200]),
    ("said", [{"xaxis.range[1]": 5000, "xaxis.range[0]": -5}, "xaxis", [3, 9], 1000], [0, 1000]),
    ("said", [{"yaxis.range[0]": 19.6, "yaxis.range[1]": 9.6}, "yaxis", [0, 1000], 1000], [10, 20]),
    ("said", [{"yaxis.range[0]": 19.6, "yaxis.range[1]": 9.6}, "xaxis", [3, 9], 1000], [3, 9]),
    ("said", [{"autosize": True}, "xaxis", [0, 1000], 1000], [0, 1000]),
    ("said", [{"xaxis.range[0]": -0.5, "xaxis.range[1]": 999.5}, "xaxis", [0, 1000], 1000], [0, 1000]),
    ("said", [{"xaxis.range[0]": 7.2, "xaxis.range[1]": 7.3}, "xaxis", [0, 1000], 1000], [7, 8]),
    ("around", [[0, 1000], 990, 0.25, 1000, 16], [750, 1000]),
    ("around", [[0, 1000], 500, 0.25, 1000, 16], [375, 625]),
    ("around", [[0, 9], 4.5, 4, 1000, 16], [0, 36]),
    ("around", [[10, 20], 15, 0.25, 1000, 16], [7, 23]),
    ("around", [[0, 1000], 500, 4, 1000, 1], [0, 1000]),
    ("moved", [[0, 100], 0.25, 1000], [25, 125]),
    ("moved", [[10, 110], -0.25, 1000], [0, 100]),
    ("moved", [[890, 990], 0.25, 1000], [900, 1000]),
    ("moved", [[5, 6], 0.25, 1000], [6, 7]),
    ("address", ["?layer=3&cell=64&keys=1-2", [0, 1000], [5, 9], 1000], "?layer=3&keys=5-9"),
    ("address", ["?queries=1-2&keys=1-2", [0, 1000], [0, 1000], 1000], ""),
)


def test_zooming_gives_ranges_inside_of_the_prompt(browser: Any, small: Any, serve: Any) -> None:
    with serve(small.path) as address:
        browser.get(f"{address}/attention")
        wait(browser, lambda b: b.execute_script("return !!window.attention_ranges"))
        for name, given, wanted in RANGES:
            found = browser.execute_script("return window.attention_ranges[arguments[0]](...arguments[1])", name, given)
            assert found == wanted, (name, given)


def test_keys_and_boxes_move_the_map_in_place_and_the_address_with_it(browser: Any, long: Any, serve: Any) -> None:
    with serve(long.path) as address:
        browser.get(f"{address}/attention?layer=1&queries=100000-100512&keys=52000-52512")
        drawn(browser, "1 query × 1 key")
        graph = browser.find_element("css selector", "#attention-map .js-plotly-plot")
        browser.execute_script("document.getElementById('attention-focus').focus()")
        for key, queries, keys in (
            ("+", (100_128, 100_384), (52_128, 52_384)),
            (Keys.ARROW_RIGHT, (100_128, 100_384), (52_192, 52_448)),
            (Keys.ARROW_DOWN, (100_192, 100_448), (52_192, 52_448)),
            ("-", (100_064, 100_576), (52_064, 52_576)),
        ):
            ActionChains(browser, duration=20).send_keys(key).perform()
            wait(browser, lambda b, queries=queries, keys=keys: shows(b, queries, keys))
            assert browser.current_url.endswith("queries={}-{}&keys={}-{}".format(*queries, *keys))
        width, height = (browser.execute_script(f"return arguments[0]._fullLayout.{a}._length", graph) for a in AXES)
        start = browser.find_element("css selector", "#attention-map .nsewdrag[data-subplot=xy]")
        ActionChains(browser, duration=20).move_to_element_with_offset(start, 0, 0).click_and_hold().move_by_offset(
            round(width / 4), round(height / 4)
        ).release().perform()
        wait(browser, lambda b: "queries=100064" not in b.current_url)
        wait(browser, lambda b: shows(b, *asked(b)))
        for found, (first, last) in zip(asked(browser), ((100_320, 100_448), (52_320, 52_448)), strict=True):
            assert found == pytest.approx((first, last), abs=3)
        # The same graph all the while: nothing flickered.
        assert graph.is_displayed()
        ActionChains(browser, duration=20).send_keys(Keys.HOME).perform()
        drawn(browser, "One cell covers 512 × 512 tokens")
        assert browser.current_url == f"{address}/attention?layer=1"


def test_until_finer_cells_have_come_the_level_above_is_drawn_and_says_so(
    browser: Any, long: Any, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, go_on = attention.content, threading.Event()

    def late(self: attention, view: Any) -> Any:
        if view["queries"]:
            assert go_on.wait(60)
        return content(self, view)

    monkeypatch.setattr(attention, "content", late)
    with serve(long.path) as address:
        browser.get(f"{address}/attention?layer=1")
        drawn(browser, "One cell covers 512 × 512 tokens")
        browser.find_element("css selector", ".attention-jumps li:nth-child(2) a").click()
        seen = wait(
            browser,
            lambda b: b.execute_script(
                "const there = document.querySelector('#attention-map .js-plotly-plot');"
                "return 'refining' in document.getElementById('attention-focus').dataset && "
                "[there._fullLayout.meta.cell, there._fullLayout.xaxis.range];"
            ),
        )
        assert seen == [512, [130_995.5, 131_071.5]]
        go_on.set()
        drawn(browser, "1 query × 1 key")
        wait(browser, lambda b: shows(b, [130_996, 131_072], [130_996, 131_072]))
        assert not browser.find_elements("css selector", "#attention-focus[data-refining]")
        # From there another place, which the picture of this one does not hold: the whole is kept for that.
        go_on.clear()
        browser.find_element("css selector", ".attention-jumps li:nth-child(1) a").click()
        wait(browser, lambda b: shows(b, [0, 131_072], [0, 131_072]))
        go_on.set()
        wait(browser, lambda b: shows(b, [51_996, 52_044], [51_996, 52_044]))


def test_the_number_under_the_cursor_is_the_exact_probability(browser: Any, small: Any, serve: Any) -> None:
    with serve(small.path) as address:
        browser.get(f"{address}/attention?unit=full&layer=0&head=2")
        drawn(browser, "1 query × 1 key")
        browser.execute_script(
            "Plotly.relayout(document.querySelector('#attention-map .js-plotly-plot'), {'xaxis.range[0]': 109.6, "
            "'xaxis.range[1]': 110.4, 'yaxis.range[0]': 200.4, 'yaxis.range[1]': 199.6})"
        )
        wait(browser, lambda b: shows(b, [200, 201], [110, 111]))
        reading = read_cell(browser)
        assert reading.startswith("query  200  ")
        assert "(needle)" in reading
        assert float(reading.rpartition("value  ")[2]) == pytest.approx(small.p[2][200, 110], rel=1e-4)
        assert browser.find_elements("css selector", ".attention-beside")
