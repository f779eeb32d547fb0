"""What every page owes: it draws, asks nobody else, complains of nothing, and anybody can use it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from probe.dashboard.application.explorer import explorer
from probe.dashboard.application.opened import Opened
from probe.dashboard.application.page import pages
from probe.dashboard.application.panel import Grid, Panel
from tests.dashboard.conftest import logged, wait

PAGES = list(pages())

SETTLED = """
return window.watched.open === 0 && performance.now() - window.watched.last > 200 &&
  !document.querySelector('[data-dash-is-loading], ._dash-loading') &&
  document.querySelector('main h1') && document.querySelector('main').textContent.length > 20 &&
  [...document.querySelectorAll('.dash-graph')].every((g) => !g.offsetParent || g.querySelector('.main-svg'))
"""


def panels(items: Any) -> list[Any]:
    """Return every figure and table among what a page shows."""
    found = []
    for item in items:
        if isinstance(item, Panel | Grid):
            found.append(item)
        elif isinstance(item, list | tuple):
            found += panels(item)
    return found


def opened_page(browser: Any, address: str) -> None:
    browser.get(address)
    wait(browser, lambda b: b.execute_script(SETTLED))


def violations(browser: Any) -> list[str]:
    """Return what axe-core finds serious or worse."""
    import axe_core_python

    script = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    browser.execute_script(script)
    found = browser.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run(document, {resultTypes: ['violations']}).then((r) => done(JSON.stringify(r.violations)));"
    )
    return [
        f"{one['id']} ({one['impact']}): {one['nodes'][0]['html'][:200]} … {one['nodes'][0]['failureSummary'][:300]}"
        for one in json.loads(found)
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("which", ["specimen", "small"])
def test_a_page_shows_something_for_every_unit(name: str, which: str, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(which)
    page = pages()[name](Opened([getattr(source, "path", source)]))
    units = list(page.opened.run().units()) if "unit" in {c.name for c in page.controls} else [""]
    for unit in units[:4]:
        _, items = page.shown(f"?unit={unit}" if unit else "")
        said = str(items)
        assert "It failed" not in said, said
        assert items or name == "attention"


@pytest.mark.parametrize("name", PAGES)
def test_an_address_that_means_nothing_is_said(name: str, small: Any) -> None:
    page = pages()[name](Opened([small.path]))
    _, items = page.shown("?nothing=1")
    assert "means nothing here" in str(items)
    _, items = page.shown("?run=elsewhere")
    assert "elsewhere" in str(items)


@pytest.mark.parametrize("name", PAGES)
def test_the_lines_of_a_figure_make_that_figure(name: str, specimen: Path) -> None:
    page = pages()[name](Opened([specimen]))
    view, items = page.shown("")
    for item in panels(items):
        if not item.python:
            continue
        *before, last = item.python.rstrip().split("\n")
        names: dict[str, Any] = {}
        exec("\n".join([*before, f"made = {last}"]), names)
        made = names["made"]
        if isinstance(item, Panel):
            assert made == item.figure, item.name
        else:
            assert made is not None
        assert view


@pytest.mark.parametrize("name", PAGES)
def test_every_figure_is_to_be_had_as_a_table(name: str, specimen: Path) -> None:
    app = explorer(specimen)
    client = app.server.test_client()
    page = pages()[name](Opened([specimen]))
    _, items = page.shown("")
    for item in panels(items):
        answer = client.get(f"/csv/{name}/{item.name}", base_url="http://127.0.0.1:8050")
        assert answer.status_code == 200, item.name
        assert answer.headers["Content-Disposition"].startswith("attachment")
        head, *rows = csv.reader(io.StringIO(answer.text))
        columns, table = item.rows()
        assert len(head) == len(columns)
        assert len(rows) == len(table)
        assert not any(cell[:1] in "=+-@\t\r" and not _number(cell) for row in rows for cell in row if cell)


def test_a_table_that_is_not_there_is_404(small: Any) -> None:
    client = explorer(small.path).server.test_client()
    for path in ("/csv/nothing/x", "/csv/overview/nothing"):
        assert client.get(path, base_url="http://127.0.0.1:8050").status_code == 404
    assert client.get("/csv/overview/x", base_url="http://evil.example").status_code == 400


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_in_a_browser_a_page_is_whole(name: str, scheme: str, specimen: Path, browser: Any, serve: Any) -> None:
    emulated = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)
    with serve(specimen) as address:
        logged(browser)
        opened_page(browser, f"{address}/{name}")
        assert browser.execute_script("return document.documentElement.dataset.mantineColorScheme") == scheme
        for place in browser.find_elements("css selector", ".explorer-later"):
            browser.execute_script("arguments[0].scrollIntoView()", place)
            wait(browser, lambda _, place=place: place.find_elements("css selector", ".ag-header-cell"))
        wait(browser, lambda b: b.execute_script(SETTLED))
        # Nothing runs out of the page at 1280 × 800.
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth + 1")
        hosts, complaints = logged(browser)
        assert hosts == {"127.0.0.1"}
        assert complaints == []
        assert violations(browser) == []


@pytest.mark.browser
def test_a_table_is_made_when_it_is_scrolled_to_and_again_when_the_page_is_made_anew(
    specimen: Path, browser: Any, serve: Any
) -> None:
    def tables() -> list[bool]:
        made = "return [...document.querySelectorAll('.explorer-later')].map((one) => one.childElementCount > 0)"
        found: list[bool] = browser.execute_script(made)
        return found

    low = {"width": 1280, "height": 320, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", low)
    with serve(specimen) as address:
        opened_page(browser, f"{address}/head_atlas")
        assert tables() == [False]
        place = browser.find_element("css selector", ".explorer-later")
        browser.execute_script("arguments[0].scrollIntoView()", place)
        wait(browser, lambda _: tables() == [True])
        # What is shown is made anew while the table is in view.
        browser.execute_script("dash_clientside.set_props('fresh', {data: 'again'})")
        wait(browser, lambda b: b.execute_script(SETTLED))
        wait(browser, lambda _: tables() == [True])
        assert browser.find_elements("css selector", "#head_atlas-all_heads .ag-cell")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
