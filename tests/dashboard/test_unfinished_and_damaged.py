"""A run that is being written fills in, one that was ended says how to go on, what is damaged hides nothing else."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from probe.dashboard.application.explorer import explorer
from probe.dashboard.application.first_paint import first_paint
from probe.dashboard.application.opened import Opened
from probe.dashboard.application.page import pages
from probe.dashboard.application.plain_html import plain_html
from probe.dashboard.needle_grid import needle_grid
from probe.dashboard.overview import overview
from probe.errors import NewerFormat, ProbeError
from probe.storage.hold import LOCK_FILE, abandoned
from probe.storage.store import RunStore, write_json
from tests.dashboard.conftest import wait
from tests.dashboard.planted_run import planted, write_run, write_unit
from tests.dashboard.test_overview import FOUND

UNITS = [unit for unit in planted() if unit["condition"] == "baseline" and unit["depth"] == 1.0]
CASEBOOK = {"name": "planted", "stages": [{"name": "read", "analyses": ["strong"]}, {"name": "ablate"}]}
RUNNING = {
    "format": 1,
    "status": "running",
    "casebook": CASEBOOK,
    "stages": {"read": {"num_units": len(UNITS)}},
    "command": "probe run planted --out here",
}


def said(opened: Opened, search: str = "") -> str:
    return plain_html(list(overview(opened).shown(search)[1]))


def test_a_run_that_is_being_written_says_how_far_it_is_and_fills_in(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", UNITS[:2], **RUNNING)
    opened = Opened([run])
    assert opened.running
    assert f"stage 1 of 2 (read: 2 of {len(UNITS)} units)" in said(opened)
    bar = re.search("<progress [^>]*>", said(opened))
    assert bar is not None
    assert {'value="2"', f'max="{len(UNITS)}"'} <= {*re.findall(r'\w+="\w+"', bar[0])}
    assert "ablate: to come" in said(opened)
    assert "Nothing was found yet" in said(opened)
    version = opened.version
    assert not opened.refresh()
    with RunStore(run) as store:
        for n, unit in enumerate(UNITS[2:], start=3):
            write_unit(store, unit)
            assert opened.refresh()
            assert f"read: {n} of {len(UNITS)} units" in said(opened)
            assert len(opened.run().answers()) == n
    write_json(run / "findings.json", [each.to_json() for each in FOUND])
    write_json(run / "run.json", RUNNING | {"status": "complete"})
    assert opened.refresh()
    assert opened.version == version + len(UNITS) - 1
    assert not opened.running
    assert said(opened).count("<article") == len(FOUND)
    assert "Being written" not in said(opened)


def test_a_run_that_was_stopped_says_so_and_how_to_go_on(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", UNITS[:2], **(RUNNING | {"status": "stopped"}))
    page = said(Opened([run]))
    assert "was stopped before its end" in page
    assert "rests on the units that were read so far" in page
    assert "probe run planted --out here</pre>" in page
    assert "Nothing was found yet" in page


def test_a_run_whose_process_is_gone_is_not_taken_for_one_that_is_being_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", UNITS[:2], **RUNNING)
    assert not abandoned(run)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    held = {"host": socket.gethostname(), "process": ended.pid}
    (run / LOCK_FILE).write_text(json.dumps(held))
    assert abandoned(run)
    opened = Opened([run])
    assert not opened.running
    assert "its process is gone" in said(opened)
    assert "probe run planted --out here</pre>" in said(opened)
    for other in (json.dumps(held | {"host": "elsewhere"}), "", "[]", '{"host": 1}', "\0"):
        (run / LOCK_FILE).write_text(other)
        assert not abandoned(run)


def test_what_cannot_be_read_any_more_stays_shown_until_it_can(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", UNITS, **RUNNING)
    opened = Opened([run])
    whole = (run / "commits.jsonl").read_bytes()
    (run / "commits.jsonl").write_bytes(whole.replace(b"baseline", b"baselines", 1))
    assert opened.refresh()
    assert "was altered" in opened.run().trouble
    assert "Cannot be read any more" in said(opened)
    assert len(opened.run().answers()) == len(UNITS)
    (run / "commits.jsonl").write_bytes(whole)
    opened.refresh()
    assert opened.run().trouble == ""


def newer(run: Path) -> None:
    record = json.loads((run / "run.json").read_bytes())
    write_json(run / "run.json", record | {"format": 99})


def torn(run: Path) -> None:
    (run / "findings.json").write_bytes((run / "findings.json").read_bytes()[:300])


def of_a_newer_form(run: Path) -> None:
    write_json(run / "findings.json", [{"format": 99, "shape": "new"}])


def missing(run: Path) -> None:
    (run / "findings.json").unlink()


def odd(run: Path) -> None:
    oddities: dict[str, Any] = {"stages": [1], "expected": {"results": [{}]}, "casebook": {"stages": "x", "expect": 3}}
    oddities |= {"provenance": "x", "model_card": 3, "success_rules": 4, "command": ["x"]}
    write_json(run / "run.json", {"format": 1, "status": "complete", **oddities})


def damaged(tmp_path: Path, harm: Callable[[Path], None]) -> Path:
    run = write_run(tmp_path / "run", UNITS, **(RUNNING | {"status": "complete"}))
    write_json(run / "findings.json", [each.to_json() for each in FOUND])
    harm(run)
    return run


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (torn, ("findings.json is not JSON", "probe verify")),
        (of_a_newer_form, ("findings.json has format version 99", "a newer version wrote it")),
        (missing, ("findings.json is missing", "makes it again")),
        (odd, ()),
    ],
)
def test_what_is_damaged_is_named_and_the_rest_is_shown(
    tmp_path: Path, harm: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    run = damaged(tmp_path, harm)
    opened = Opened([run])
    assert all(each in said(opened) for each in words)
    assert all(each in first_paint(opened, "") for each in words)
    for name, page in pages().items():
        _, items = page(opened).shown("")
        assert "It failed" not in str(items), name
        assert items or name == "attention"
    _, items = needle_grid(opened).shown("?tables=on")
    assert any(getattr(item, "name", "") == "cells" for item in items)


def test_one_that_cannot_be_opened_among_several_leaves_the_others(tmp_path: Path) -> None:
    good = write_run(tmp_path / "good", UNITS, status="complete")
    (tmp_path / "notes").mkdir()
    late = write_run(tmp_path / "late", UNITS)
    newer(late)
    opened = Opened([tmp_path / "nowhere", tmp_path / "notes", late, good])
    wanted = {
        "nowhere": "nowhere is not there",
        "notes": "neither a run nor a trace",
        "late": "a newer version wrote it, and can read it",
    }
    for name, why in wanted.items():
        page = overview(opened)
        assert why in said(opened, f"?run={name}")
        assert "There are also good" in said(opened, f"?run={name}")
        assert [value for value, _ in page._offered({"run": name, "finding": "all"})["run"]] == ["good", *wanted]
    assert "Nothing to show" not in said(opened, "?run=good")
    with pytest.raises(NewerFormat):
        Opened([late])


def test_a_damaged_chunk_is_named_on_the_pages_that_read_it(small: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small.path, run)
    chunk = next(
        path for path in sorted((run / "trace.zarr" / "full" / "attention_map" / "c").rglob("*")) if path.is_file()
    )
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(bytes(data))
    opened = Opened([run])
    app = explorer(run)
    with pytest.raises(ProbeError, match=r"attention_map, chunk"):
        opened.run().trace("full")["attention_map"].to_numpy()
    assert app.server.test_client().get("/", base_url="http://127.0.0.1:8050").status_code == 200
    for name, page in pages().items():
        takes_units = "unit" in {control.name for control in page.controls}
        _, items = page(opened).shown("?unit=full" if takes_units else "")
        assert "It failed" not in str(items), name
        _, items = page(opened).shown("?unit=bare" if takes_units else "")
        assert "attention_map, chunk" not in str(items), name


def test_in_a_browser_a_run_fills_in_by_itself(tmp_path: Path, browser: Any, serve: Any) -> None:
    run = write_run(tmp_path / "run", UNITS[:1], **RUNNING)
    with serve(run) as address:
        browser.get(f"{address}/overview")

        def reads(words: str) -> Any:
            return wait(browser, lambda b: words in b.find_element("css selector", "main").text)

        reads(f"read: 1 of {len(UNITS)} units")
        wait(browser, lambda b: f"read: 1 of {len(UNITS)} units" in b.find_element("id", "status").text)
        with RunStore(run) as store:
            write_unit(store, UNITS[1])
        reads(f"read: 2 of {len(UNITS)} units")
        write_json(run / "findings.json", [FOUND[2].to_json()])
        write_json(run / "run.json", RUNNING | {"status": "complete"})
        reads("strong it is")
        wait(browser, lambda b: b.find_element("id", "status").text == "")
