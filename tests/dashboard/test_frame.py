"""The frame around the pages: the address is the view, keys and links change it, figures can be taken away."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

from probe.dashboard.application.explorer import explorer
from probe.dashboard.application.first_paint import first_paint
from probe.dashboard.application.keys import KEYS
from probe.dashboard.application.opened import Opened
from probe.errors import NotAvailable, UsageError
from tests.dashboard.conftest import wait

BASE = "http://127.0.0.1:8050"


def test_the_first_answer_holds_every_claim_as_text(specimen: Path) -> None:
    claims = [finding.claim for finding in Opened([specimen]).run().findings()]
    page = explorer(specimen).server.test_client().get("/", base_url=BASE).text
    from html import unescape

    assert len(claims) == 5
    assert all(claim in unescape(page) for claim in claims)
    assert '<html lang="en">' in page


def test_the_first_answer_escapes_what_it_says(specimen: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(specimen, run)
    found = run / "findings.json"
    words = '"claim":"<script>window.ran=1</script>\\u202e'
    found.write_text(
        found.read_text(encoding="utf-8").replace('"claim":"', words).replace('"claim": "', words), "utf-8"
    )
    page = first_paint(Opened([run]), "")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "⟨U+202E⟩" in page


def test_several_runs_are_opened_and_the_broken_one_is_named(small: Any, long: Any, tmp_path: Path) -> None:
    opened = Opened([small.path, long.path, tmp_path / "nowhere"])
    assert opened.names == ["run", "run-2", "nowhere"]
    assert opened.run("run-2").path == long.path
    with pytest.raises(UsageError, match=r"nowhere cannot be shown: .*is not there"):
        opened.run("nowhere")
    with pytest.raises(UsageError, match="no run 'x' was opened; there are run, run-2, nowhere"):
        opened.run("x")
    with pytest.raises(NotAvailable):
        Opened([tmp_path / "nowhere"])


def test_a_view_survives_reload_back_and_links(specimen: Path, browser: Any, serve: Any) -> None:
    with serve([specimen]) as address:
        browser.get(f"{address}/overview")
        wait(browser, lambda b: b.find_elements("css selector", ".explorer-content .explorer-card"))
        browser.find_element("css selector", ".explorer-content .explorer-card a").click()
        wait(browser, lambda b: "finding=" in b.current_url and b.find_elements("css selector", ".main-svg"))
        there = browser.current_url
        said = browser.find_element("css selector", ".explorer-words").text
        browser.refresh()
        wait(browser, lambda b: b.find_elements("css selector", ".main-svg"))
        assert (browser.current_url, browser.find_element("css selector", ".explorer-words").text) == (there, said)
        browser.back()
        wait(browser, lambda b: b.find_elements("css selector", ".explorer-content .explorer-card"))
        browser.forward()
        wait(browser, lambda b: b.find_elements("css selector", ".explorer-words"))
        assert browser.current_url == there


def test_links_take_along_what_the_other_page_has(specimen: Path, browser: Any, serve: Any) -> None:
    unit = list(Opened([specimen]).run().units())[3]
    with serve([specimen]) as address:
        browser.get(f"{address}/attention?unit={unit}&layer=2&head=5")
        wait(browser, lambda b: b.find_elements("css selector", "#attention-map .main-svg"))
        hrefs = {
            name: wait(browser, lambda b, name=name: b.find_element("id", f"nav-{name}").get_attribute("href"))
            for name in ("overview", "head")
        }
    assert hrefs["overview"] == f"{address}/overview"
    assert hrefs["head"] == f"{address}/head?unit={unit}&layer=2&head=5"


def test_keys_change_the_view_and_are_listed(specimen: Path, browser: Any, serve: Any) -> None:
    def press(keys: str) -> None:
        ActionChains(browser).send_keys(keys).perform()

    with serve([specimen]) as address:
        browser.get(f"{address}/attention?layer=0&head=1")
        wait(browser, lambda b: b.find_elements("css selector", "#attention-map .main-svg"))
        for key, part in (("j", "head=2"), ("k", "head=1"), ("J", "layer=1")):
            press(key)
            wait(browser, lambda b, part=part: part in b.current_url)
            wait(browser, lambda b: b.find_elements("css selector", "#attention-map .main-svg"))
        press("?")
        shown = wait(browser, lambda b: b.find_element("id", "keys").text)
        assert all(does in shown for _, does in KEYS)
        press(Keys.ESCAPE)
        wait(browser, lambda b: not b.find_element("id", "keys").is_displayed())
        press("1")
        wait(browser, lambda b: b.current_url.split("?")[0].endswith("/overview"))
        before = browser.execute_script("return document.documentElement.dataset.mantineColorScheme")
        press("d")
        wait(
            browser,
            lambda b: b.execute_script("return document.documentElement.dataset.mantineColorScheme") != before,
        )
        press("d")


def test_a_figure_is_saved_as_a_picture_and_its_lines_are_shown(
    specimen: Path, browser: Any, serve: Any, tmp_path: Path
) -> None:
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    with serve([specimen]) as address:
        browser.get(f"{address}/overview?finding=retrieval_heads")
        wait(browser, lambda b: b.find_elements("css selector", "#overview-retrieval_atlas .main-svg"))
        panel = browser.find_element("id", "overview-retrieval_atlas")
        for kind, begin in (("png", b"\x89PNG"), ("svg", b"<svg")):
            panel.find_element("css selector", f"[data-export={kind}]").click()
            file = tmp_path / f"overview-retrieval_atlas.{kind}"
            wait(browser, lambda _, file=file: file.exists() and file.stat().st_size)
            assert begin in file.read_bytes()[:200]
        panel.find_element("link text", "CSV").click()
        file = tmp_path / "overview-retrieval_atlas.csv"
        wait(browser, lambda _: file.exists() and file.stat().st_size)
        assert len(file.read_text(encoding="utf-8").splitlines()) == 49
        panel.find_element("css selector", "[data-python]").click()
        lines = wait(browser, lambda b: panel.find_element("css selector", ".explorer-lines").text)
        assert "probe.open" in lines
