"""In a notebook a run and a trace show the explorer below the cell: served by the kernel, to this machine alone."""

from __future__ import annotations

import http.server
import os
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import probe
from probe.dashboard.application import embedding
from probe.errors import UsageError
from probe.sample import Sample, Span
from probe.storage.store import MemoryStore
from tests.dashboard.conftest import NUM_HEADS, SCALE, keep_vectors, probabilities, served, wait
from tests.dashboard.test_in_a_browser import drawn, read_cell, shows

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def stopped() -> Iterator[None]:
    yield
    embedding.stop()


def port(address: str) -> int:
    found = urlsplit(address).port
    assert found is not None
    return found


class InMemory:
    """A trace that was never on a disk, and its probabilities by definition."""

    def __init__(self) -> None:
        random = np.random.default_rng(3)
        vectors = random.normal(size=(2, NUM_HEADS, 40, 8)).astype(np.float32)
        self.p = np.stack([probabilities(q, k, SCALE) for q, k in zip(*vectors, strict=True)])
        logits = np.einsum("hqc,hkc->hqk", *vectors, dtype=np.float64) * SCALE
        log_z = [[np.log(np.exp(row[: i + 1]).sum()) for i, row in enumerate(head)] for head in logits]
        store = MemoryStore()
        writer = store.begin_unit("fresh", sample=Sample("fresh", tuple(range(40)), (Span("needle", 5, 9),)))
        keep_vectors(writer, 2, *vectors, np.array(log_z, np.float32), SCALE)
        writer.commit()
        self.trace = store.trace("fresh")


def test_a_run_is_served_once_to_this_machine_alone(small: Any, long: Any) -> None:
    run = probe.open(small.path)
    view, again, other = run.view(), run.view("text"), probe.open(long.path).view()
    assert repr(view) == f"run, overview: {view.address}"
    assert view.address.startswith("http://127.0.0.1:")
    assert port(view.address) == port(again.address) != port(other.address)
    assert again.address.endswith("/text")
    with urllib.request.urlopen(view.address) as answer:
        policy = answer.headers["Content-Security-Policy"]
    assert "frame-ancestors http://localhost:* http://127.0.0.1:*" in policy
    assert f'<iframe src="{view.address}"' in view._repr_html_()
    embedding.stop()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(view.address)
    assert port(run.view().address)


def test_a_unit_of_a_run_and_a_saved_trace_are_served_from_their_folder(small: Any, tmp_path: Path) -> None:
    unit = probe.open(small.path).trace("full")
    assert unit.folder == small.path / "trace.zarr" / "full"
    assert unit.attention(0, 3).address.endswith("/attention?layer=0&head=3&bare=on")
    saved = probe.open(unit.save(tmp_path / "saved"))
    shown = saved.attention(0, 1, slice(5, 9), slice(3))
    assert shown.address.endswith("/attention?layer=0&head=1&queries=5-9&keys=0-3&bare=on")
    assert saved.view("state").address.endswith("/state")


def test_a_trace_in_memory_is_saved_for_as_long_as_it_is_shown() -> None:
    trace = InMemory().trace
    assert trace.folder is None
    first = trace.attention(2, 0)
    assert port(trace.attention(2, 1).address) == port(first.address)
    (folder,) = embedding._servers
    assert folder.exists()
    assert probe.open(folder).sample == trace.sample
    embedding.stop()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda trace: trace.attention(9, 0), "no layer 9 in this trace; there are 0, 1"),
        (lambda trace: trace.attention(0, 4), "layer 0 has no head 4; its heads are 0 to 3"),
        (lambda trace: trace.attention(0, -1), "whole number"),
        (lambda trace: trace.attention(0, 0, slice(5, 301)), "consecutive positions of 0:300"),
        (lambda trace: trace.attention(0, 0, None, slice(0, 10, 2)), "consecutive positions of 0:300"),
        (lambda trace: trace.view("nothing"), "no page 'nothing'; there are overview, "),
    ],
)
def test_what_is_not_there_is_said_at_once(small: Any, asked: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        asked(probe.open(small.path).trace("full"))
    assert not embedding._servers


def test_reading_a_trace_does_not_load_the_explorer(small: Any) -> None:
    import subprocess
    import sys

    code = f"import sys, probe; repr(probe.open({str(small.path)!r}).trace('full')); print('dash' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_notebook_shows_a_frame_and_its_kernel_ends(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    cells = (
        f"import probe\nrun = probe.open({str(small.path)!r})\nrun.view()",
        "run.trace('full').attention(0, 1, slice(10, 50), slice(10, 50))",
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output["data"] for cell in notebook.cells for output in cell.outputs if "data" in output]
    assert [said["text/plain"].partition(": ")[0] for said in shown] == ["run, overview", "full, attention"]
    assert all(said["text/html"].startswith('<iframe src="http://127.0.0.1:') for said in shown)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(shown[0]["text/plain"].partition(": ")[2])


@pytest.fixture
def framed() -> Iterator[Any]:
    """Serve a page of another port that frames an address, as a notebook does."""
    asked: dict[str, str] = {}

    class Notebook(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = asked["html"].encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Notebook)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def show(html: str) -> str:
        asked["html"] = f"<!doctype html><title>notebook</title>{html}"
        return f"http://127.0.0.1:{server.server_port}/"

    yield show
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.browser
def test_the_widget_draws_in_a_frame_with_the_exact_number_under_the_cursor(browser: Any, framed: Any) -> None:
    there = InMemory()
    view = there.trace.attention(2, 1, slice(30, 31), slice(6, 7))
    browser.get(framed(view._repr_html_()))
    browser.switch_to.frame(browser.find_element("tag name", "iframe"))
    drawn(browser, "1 query × 1 key")
    assert shows(browser, [30, 31], [6, 7])
    for gone in (".explorer-header", "#attention-layer", ".explorer-title"):
        assert not any(each.is_displayed() for each in browser.find_elements("css selector", gone))
    assert browser.find_element("link text", "Open in the explorer").is_displayed()
    said = read_cell(browser)
    assert "(needle)" in said
    assert float(said.rpartition("value  ")[2]) == pytest.approx(there.p[1, 30, 6], rel=1e-4)
    browser.find_element("link text", "Whole prompt").click()
    wait(browser, lambda b: shows(b, [0, 40], [0, 40]))


@pytest.mark.browser
def test_no_other_page_frames_an_explorer_that_was_not_made_for_it(browser: Any, framed: Any, small: Any) -> None:
    with served(small.path) as address:
        browser.get(framed(f'<iframe src="{address}/attention" width="900" height="700"></iframe>'))
        # What Chromium shows instead is nothing of ours.
        wait(browser, lambda b: "frame-ancestors" in str(b.get_log("browser")))
        browser.switch_to.frame(browser.find_element("tag name", "iframe"))
        assert not browser.find_elements("css selector", "#react-entry-point, .explorer-header")
