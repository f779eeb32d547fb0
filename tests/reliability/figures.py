"""What a run of the tests measured, kept in a file that docs/reliability.md is written from.

A test of any folder says what it measured by the fixture `measured`:

    def test_every_kill_is_survived(measured: Measured) -> None:
        ...
        assert recovered == kills
        measured("kill -9", f"{recovered} of {kills} kills recovered")

The first argument is the row's name in `tests/reliability/rows.py`, the second what was found, in words with its number
and its unit. What is said counts only where the test passes. Without `--figures FILE` nothing is written; with it the
file holds, besides what was measured, for every test that a row lists how many of its cases passed:

    pytest -m nightly tests/test_faults.py --figures docs/reliability.json
    python -m tests.reliability.page

Figures that were kept in other files, on another machine, are taken in with `python -m tests.reliability.page FILE…`.
A later run with the same file replaces what it says anew of a test and leaves the others, each with its own date.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.rows import ROWS, listed

Measured = Callable[[str, str], None]
"""`measured(row, figure)`; raises KeyError for a row that is none."""

LIBRARIES = ("probe-attention", "torch", "transformers", "zarr", "numpy", "ray", "fsspec")
_PROPERTY = "reliability"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer `--figures FILE`."""
    parser.addoption(
        "--figures", type=Path, metavar="FILE", help="keep what was measured there, for docs/reliability.md"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Collect, where figures are asked for, in the process that hears of every test."""
    path = config.getoption("--figures", default=None)
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Collector(path), "reliability-figures")


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Say what a test measured for a row of the bars."""

    def say(row: str, figure: str) -> None:
        ROWS[row]
        request.node.user_properties.append((_PROPERTY, {"row": row, "figure": figure}))

    return say


class Collector:
    """Hears how each test ended, and what it measured."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": {}, "tests": {}}
        self.tests: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a case, with its figures where it passed."""
        said = [value for key, value in report.user_properties if key == _PROPERTY]
        # A case with a figure stands for itself, so that cases may be run apart; others are counted together.
        own = bool(said) or report.nodeid in self.before["tests"]
        name = report.nodeid if own else report.nodeid.partition("[")[0]
        ended = report.when == "call" or report.outcome != "passed"
        if not ended or not (said or listed(name) or name in self.before["tests"]):
            return
        none: dict[str, Any] = {"set": _set(report), "passed": 0, "failed": 0, "skipped": 0, "rows": [], "figures": []}
        test = self.tests.setdefault(name, none)
        test[report.outcome] += 1
        test["rows"] = sorted({*test["rows"], *(each["row"] for each in said)})
        if report.outcome == "passed":
            test["figures"] += [each for each in said if each not in test["figures"]]

    def pytest_sessionfinish(self) -> None:
        """Put what was heard into the file, in the place of what it held of the same tests."""
        key = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"
        ran = {name: test | {"run": key} for name, test in self.tests.items() if test["passed"] or test["failed"]}
        # A test that failed before it could say what it measures has failed the rows that it spoke for before.
        for name, test in ran.items():
            if test["failed"]:
                test["rows"] = sorted({*test["rows"], *self.before["tests"].get(name, {}).get("rows", [])})
        if ran:
            write(self.path, together(self.before, {"runs": {key: machine()}, "tests": ran}))


def together(before: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Return what two runs of the tests measured; of a test that both ran, what the later one says."""
    tests = dict(sorted((before["tests"] | later["tests"]).items()))
    used = {test["run"] for test in tests.values()}
    runs = {key: of for key, of in (before["runs"] | later["runs"]).items() if key in used}
    return {"runs": dict(sorted(runs.items())), "tests": tests}


def write(path: Path, data: dict[str, Any]) -> None:
    """Write what was measured as `--figures` does."""
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, memory in GiB, load, and versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": cores,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[2], 1),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _set(report: pytest.TestReport) -> str:
    return next((name for name in ("nightly", "slow") if name in report.keywords), "fast")
