"""In a real browser the page shows its picture and its words, runs no token, and asks nobody else for anything."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from probe.dashboard.attention import attention
from probe.dashboard.attention_map.token_labels import seen
from tests.dashboard.conftest import HOSTILE

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")), reason="no chromium and chromedriver here"
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,800"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def wait(browser: Any, condition: Any) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60).until(condition)


def drawn(browser: Any, words: str) -> None:
    """Wait until the picture is there, and the words beside it."""
    wait(
        browser,
        lambda b: (
            b.find_elements("css selector", "#attention-map .heatmaplayer image")
            and words in b.find_element("id", "attention-words").text
        ),
    )


def logged(browser: Any) -> tuple[set[str], list[str]]:
    """Return the hosts that were asked since the last time, and what the browser complained of."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    hosts = {urlsplit(url).hostname or "" for url in asked if url.startswith(("http", "ws"))}
    # 400 and the like of the browser's own, and the missing favicon, are no errors of the page.
    return hosts, [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_the_page_opens_and_asks_nobody_else(browser: Any, long: Any, serve: Any) -> None:
    with serve(long.path) as address:
        browser.get(f"{address}/attention?layer=1")
        drawn(browser, "One cell covers 512 × 512 tokens")
        # In one go: the figure may be drawn again between two looks.
        said = (
            "return [...document.querySelectorAll('#attention-map .annotation-text')].map((each) => each.textContent)"
        )
        names = browser.execute_script(said)
        assert names == ["needle", "question"] * 2
        hosts, complaints = logged(browser)
    assert hosts == {"127.0.0.1"}
    assert complaints == []


def test_a_link_shows_the_same_view_and_a_click_zooms(browser: Any, long: Any, serve: Any) -> None:
    from selenium.webdriver import ActionChains

    with serve(long.path) as address:
        browser.get(f"{address}/attention?layer=1&head=1&queries=1000-3000&keys=0-2000")
        drawn(browser, "One cell covers 2 × 2 tokens")
        assert browser.find_element("id", "attention-head").get_attribute("value") == "1"
        ActionChains(browser).click(browser.find_element("css selector", "#attention-map .nsewdrag")).perform()
        drawn(browser, "1 query × 1 key")
        zoomed = browser.current_url
        assert "queries=1" in zoomed
        browser.refresh()
        drawn(browser, "1 query × 1 key")
        assert browser.current_url == zoomed
        browser.back()
        drawn(browser, "One cell covers 2 × 2 tokens")


def test_hostile_tokens_are_shown_and_none_runs(browser: Any, small: Any, serve: Any) -> None:
    from selenium.webdriver import ActionChains

    with serve(small.path) as address:
        for token in range(len(HOSTILE)):
            key = small.tokens.index(token)
            browser.get(f"{address}/attention?unit=full&layer=0&queries=299-300&keys={key}-{key + 1}")
            drawn(browser, "1 query × 1 key")
            map_ = browser.find_element("css selector", "#attention-map .nsewdrag")
            ActionChains(browser).move_to_element(map_).perform()
            wait(browser, lambda b: "value" in b.find_element("id", "attention-reading").text)
            reading = browser.find_element("id", "attention-reading").get_attribute("textContent")
            told = f"key    {key}  {seen(HOSTILE[token])}"
            assert reading.split("\n")[1].removesuffix("  (needle)").removesuffix("  (<b>q</b>)") == told
            shown = float(reading.rpartition("value  ")[2])
            assert shown == pytest.approx(small.p[0][299, key], rel=1e-4)
        assert browser.execute_script("return window.ran") is None


def test_a_figure_that_fits_itself_to_the_window_does_not_undo_the_address(
    browser: Any, long: Any, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, go_on = attention._look, threading.Event()

    def late(self: attention, search: str | None, values: Any, changed: str | None) -> Any:
        if changed is None and search == "?layer=1&head=0":
            assert go_on.wait(60)
        return looks(self, search, values, changed)

    monkeypatch.setattr(attention, "_look", late)
    with serve(long.path) as address:
        browser.get(f"{address}/attention?layer=1&head=1&queries=1000-3000&keys=0-2000")
        drawn(browser, "One cell covers 2 × 2 tokens")
        # What the figure says when it has fitted itself, while the answer for another address is on its way.
        browser.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "history.pushState({}, '', '?layer=1&head=0'); window.dispatchEvent(new PopStateEvent('popstate'));"
            "setTimeout(() => Plotly.relayout(document.querySelector('#attention-map .js-plotly-plot'), "
            "{autosize: true, hovermode: 'x'}).then(() => fetch('/favicon.ico')).then(() => done()), 300);"
        )
        go_on.set()
        drawn(browser, "One cell covers 512 × 512 tokens")
