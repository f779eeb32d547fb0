"""The explorer's bars, measured: `python -m tests.dashboard.bars RUN [--out FILE.json]`, RUN as large_run writes it.

Server, browser and driver share two cores. A time is taken in the page, from the event that a person causes to the last
change that it leads to: no request is open and no figure is being drawn for `QUIET_MS`, which is taken off again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.dashboard.watching import WATCH

CORES = 2
QUIET_MS = 120
INTERACTIONS = 200

ACT = """
const done = arguments[arguments.length - 1], quiet = arguments[1];
const began = performance.now();
window.watched.last = began;
new Function(arguments[0])();
const look = () => {
  const now = performance.now();
  if (window.watched.open === 0 && now - window.watched.last > quiet) done(window.watched.last - began);
  else if (now - began > 20000) done(-1);
  else setTimeout(look, 5);
};
setTimeout(look, 5);
"""


class Watched:
    """A browser that times what is done in it."""

    def __init__(self, address: str) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
            options.add_argument(argument)
        options.add_argument("--window-size=1280,887")
        options.add_argument("--enable-precise-memory-info")
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        self.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
        self.address = address

    def act(self, script: str) -> float:
        """Do something in the page; return milliseconds until nothing changes any more."""
        took = float(self.driver.execute_async_script(ACT, script, QUIET_MS))
        if took < 0:
            raise TimeoutError(f"the page did not come to rest after {script!r}")
        return took

    def go(self, href: str) -> float:
        """Go to an address inside of the application, as a link or a key does."""
        return self.act(f"window.explorer.go({json.dumps(href)})")

    def load(self, href: str) -> None:
        """Load an address anew, and wait until it is at rest."""
        self.driver.get(self.address + href)
        self.act("")
        self.act("")

    def sizes(self) -> list[tuple[int, str]]:
        """Return the size of every response so far, and what was asked, and forget them."""
        found: list[tuple[int, str]] = self.driver.execute_script(
            "const all = window.watched.bytes; window.watched.bytes = []; return all;"
        )
        return [(size, url) for size, url in found]

    def heap(self) -> float:
        """Return the page's heap after a collection, in MB."""
        self.driver.execute_cdp_cmd("HeapProfiler.collectGarbage", {})
        return float(self.driver.execute_script("return performance.memory.usedJSHeapSize")) / 1e6


@contextmanager
def served(run: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Serve a run with `probe view` in a process of its own; yields its address and the process."""
    command = [sys.executable, "-m", "probe", "view", str(run), "--no-browser", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line
        yield found[0].rstrip("/"), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def summed(times: list[float]) -> dict[str, float]:
    """Return median and 95th percentile, in milliseconds."""
    return {
        "median_ms": round(float(np.median(times))),
        "p95_ms": round(float(np.percentile(times, 95))),
        "n": len(times),
    }


def measure(run: Path, interactions: int = INTERACTIONS) -> dict[str, Any]:
    """Return every figure of the table of bars."""
    from probe.dashboard.application.page import pages

    names = list(pages())
    found: dict[str, Any] = {"cores": CORES}
    with served(run) as (address, server):
        browser = Watched(address)
        try:
            paints = []
            for _ in range(5):
                browser.load("/")
                paints.append(
                    browser.driver.execute_script(
                        "return performance.getEntriesByName('first-contentful-paint')[0].startTime"
                    )
                )
            found["first_paint"] = summed(paints)
            sizes = browser.sizes()
            for name in names:  # What a browser loads once, a person waits for once.
                browser.go(f"/{name}")
            changes: dict[str, list[float]] = {name: [] for name in names}
            for name in [*names[1:], names[0], *names[2:], *names[:2]] * 2:
                changes[name].append(browser.go(f"/{name}"))
            found["page_change"] = summed([time for times in changes.values() for time in times])
            found["page_change_by_page"] = {name: summed(times) for name, times in changes.items()}
            heads: list[float] = []
            for name in ("attention", "head"):
                browser.go(f"/{name}?layer=1&head=0")
                heads += [browser.go(f"/{name}?layer={1 + i // 12}&head={1 + i % 12}") for i in range(24)]
            found["head_change"] = summed(heads)
            zooms: dict[str, list[float]] = {"exact": [], "pooled": []}
            for i in range(15):
                at = 8_000 * i
                exact = f"queries={at}-{at + 2000}&keys={at // 2}-{at // 2 + 2000}"
                zooms["exact"].append(browser.go(f"/attention?layer=1&head={i}&{exact}"))
                pooled = f"queries={at // 2}-{at // 2 + 40_000}&keys=0-{40_000 + at}"
                zooms["pooled"].append(browser.go(f"/attention?layer=2&head={i}&{pooled}"))
            found["zoom"] = {kind: summed(times) for kind, times in zooms.items()}
            sizes += browser.sizes()
            largest = max(sizes)
            found["largest_response"] = {"mb": round(largest[0] / 1e6, 3), "of": largest[1].removeprefix(address)}
            heap = [browser.heap()]
            random = np.random.default_rng(0)
            for i in range(interactions):
                name = names[int(random.integers(len(names)))]
                layer, head = int(random.integers(4)), int(random.integers(16))
                part = f"?layer={layer}&head={head}" if name in ("attention", "head", "text") else ""
                browser.go(f"/{name}{part}")
                if (i + 1) % 50 == 0:
                    heap.append(browser.heap())
            found["heap_mb"] = [round(value) for value in heap]
            found["server_mb"] = round(server.memory_info().rss / 1e6)
            found["server_peak_mb"] = _peak(server.pid)
            found["largest_response"]["mb"] = max(
                found["largest_response"]["mb"], round(max(browser.sizes(), default=(0, ""))[0] / 1e6, 3)
            )
        finally:
            browser.driver.quit()
    return found


def _peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return round(int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1e3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--interactions", type=int, default=INTERACTIONS)
    asked = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    measured = measure(asked.run, asked.interactions)
    text = json.dumps(measured, indent=1)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n", encoding="utf-8")
