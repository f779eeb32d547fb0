"""docs/reliability.md says what the tests measured, of every row, and names no test that is gone."""

from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.figures import Collector, Measured
from tests.reliability.page import DATA, NOT_MEASURED, PAGE, page
from tests.reliability.rows import ROWS

ROOT = Path(__file__).resolve().parents[2]


def cells() -> list[list[str]]:
    return [line.split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]


def test_the_page_is_what_was_measured() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(json.loads(DATA.read_text(encoding="utf-8")))


def test_every_row_has_a_figure_or_says_that_it_has_none() -> None:
    said = {row[0].removeprefix("| "): row[-1] for row in cells()}
    figures = json.loads(DATA.read_text(encoding="utf-8"))["tests"].values()
    for name, row in ROWS.items():
        has = any(each["row"] == name for test in figures for each in test["figures"])
        assert said[row.what].strip(" |")
        assert not (has and NOT_MEASURED in said[row.what])


def test_the_tests_that_are_named_are_there() -> None:
    named = {test for row in ROWS.values() for test in row.tests}
    named |= {test.partition("[")[0] for test in json.loads(DATA.read_text(encoding="utf-8"))["tests"]}
    there = {
        f"{file}::{each.name}"
        for file in {test.partition("::")[0] for test in named}
        if (ROOT / file).exists()
        for each in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        if isinstance(each, ast.FunctionDef)
    }
    assert not named - there


def test_the_table_of_exit_codes_is_that_of_the_errors() -> None:
    from probe import errors
    from probe.command.watching import STOPS

    ours = {each.exit_code for each in vars(errors).values() if isinstance(each, type)}
    table = (ROOT / "docs" / "file-formats.md").read_text(encoding="utf-8").partition("## Exit codes")[2]
    said = [line.split("|")[1] for line in table.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    assert ours | {0, *STOPS.values()} == {int(code) for cell in said[2:] for code in cell.split(",")}


def heard(collector: Collector, name: str, outcome: Any, *said: str, when: Any = "call") -> None:
    properties = [("reliability", {"row": row, "figure": f"{row}: 2 of 2"}) for row in said]
    report = pytest.TestReport(name, (name, 0, name), {}, outcome, None, when, user_properties=properties)
    collector.pytest_runtest_logreport(report)


def test_what_is_measured_is_kept_where_the_test_passes(tmp_path: Path) -> None:
    named = ROWS["one bit"].tests[0]
    first = Collector(tmp_path / "figures.json")
    heard(first, "tests/a.py::one", "passed", when="setup")
    heard(first, "tests/a.py::one", "passed", "kill -9")
    heard(first, "tests/a.py::two[3]", "failed", "full disk")
    heard(first, "tests/a.py::neither", "passed")
    for case in range(3):
        heard(first, f"{named}[{case}]", "failed" if case == 2 else "passed")
    first.pytest_sessionfinish()
    second = Collector(tmp_path / "figures.json")
    heard(second, "tests/a.py::one", "failed", when="setup")
    heard(second, "tests/a.py::two[3]", "skipped")
    second.pytest_sessionfinish()
    data = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert set(data["tests"]) == {"tests/a.py::one", "tests/a.py::two[3]", named}
    said = page(data)
    # What was said before the failure is gone, and what was not run is as it was.
    assert "kill -9: 2 of 2" not in said
    assert "**`one` failed**" in said
    assert "**`two[3]` failed**" in said
    assert "2 cases passed, **1 failed**" in said


def test_a_row_that_is_none_is_refused(measured: Measured) -> None:
    with pytest.raises(KeyError):
        measured("no such row", "1")


def test_a_set_that_is_none_is_refused_before_anything_is_installed() -> None:
    done = subprocess.run([ROOT / ".ci" / "run", "hourly"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "'slow or nightly', not hourly" in done.stderr
