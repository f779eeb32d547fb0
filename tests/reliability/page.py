"""Writes docs/reliability.md from what a run of the tests measured; `python -m tests.reliability.page`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from tests.reliability.figures import together, write
from tests.reliability.rows import ROWS, Row

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
DATA: Final = DOCS / "reliability.json"
PAGE: Final = DOCS / "reliability.md"

NOT_MEASURED: Final = "not measured"
"""What a row says for which no test has run."""

_HEAD = """\
# What holds under fire

What is promised of a run, each promise with its bar and with what the tests measured. Written by
`python -m tests.reliability.page` from `reliability.json`, which the tests write; neither is edited by hand.

Bytes, resuming and equality of workers are promised at a fixed number of threads and fixed chunk sizes, in
deterministic mode; elsewhere to the tolerance that stands there. A row's figure is a test's own; where a row has none,
the number of cases that passed stands for it. The date of each leads to the [machine](#machines) that it was taken on.
What exit codes say stands in [file-formats.md](file-formats.md#exit-codes).
"""

_SETS = """\
## How to measure it again

The fast set runs with `.ci/run`; `.ci/run slow` runs what takes minutes, `.ci/run nightly` what takes hours. With
`--figures docs/reliability.json` pytest keeps what it measured, and the page is written anew from that.
"""


def page(data: dict[str, Any]) -> str:
    """Return the page, as text, of what the tests measured."""
    parts = [_HEAD]
    for group in dict.fromkeys(row.group for row in ROWS.values()):
        parts.append(f"## {group}\n\n| what | bar | measured |\n| --- | --- | --- |\n")
        parts[-1] += "".join(
            f"| {_escaped(row.what)} | {_escaped(row.bar)} | {'<br>'.join(_said(name, row, data))} |\n"
            for name, row in ROWS.items()
            if row.group == group
        )
    parts += [_SETS, _which(), _machines(data)]
    return "\n".join(parts)


def _said(name: str, row: Row, data: dict[str, Any]) -> list[str]:
    """Return what stands in a row's last cell: figures, the count of the tests that the row names, or neither."""
    lines = [
        f"{_escaped(each['figure'])} ({test['set']}, {_day(test)})"
        for test in data["tests"].values()
        for each in test["figures"]
        if each["row"] == name
    ]
    ran = {test: of for test, of in data["tests"].items() if test.partition("[")[0] in row.tests}
    if ran:
        passed, failed = (sum(of[how] for of in ran.values()) for how in ("passed", "failed"))
        absent = len({*row.tests} - {test.partition("[")[0] for test in ran})
        said = f"{passed:,} case{'s' * (passed != 1)} passed" + (f", **{failed:,} failed**" if failed else "")
        said += f"; {absent} of the row's {len(row.tests)} tests not run" if absent else ""
        lines.append(f"{said} ({', '.join(sorted({_day(of) for of in ran.values()}))})")
    # A test that failed says no figure; that it failed is told all the same.
    broken = [
        test.rpartition("::")[2]
        for test, of in data["tests"].items()
        if of["failed"] and test.partition("[")[0] not in row.tests and name in of["rows"]
    ]
    return [*lines, *(f"**`{test}` failed**" for test in broken)] or [NOT_MEASURED]


def _which() -> str:
    lines = ["## The tests that rows count\n"]
    for row in ROWS.values():
        if row.tests:
            lines.append("\n".join([f"- {row.what}:", *(f"  - `{test}`" for test in row.tests)]))
    return "\n".join(lines) + "\n"


def _machines(data: dict[str, Any]) -> str:
    """Say what each run of the tests ran on; runs that differ in their date and load alone stand together."""
    alike: dict[str, list[str]] = {}
    for when, run in data["runs"].items():
        versions = ", ".join(f"{library} {version}" for library, version in run["versions"].items())
        where = f"{run['processor']}, {run['cores']} cores, {run['memory_gib']} GiB, {run['system']}; {versions}"
        alike.setdefault(where, []).append(f"{when} (load {run['load']})")
    lines = "".join(f"- {where}: {'; '.join(sorted(runs))}\n" for where, runs in alike.items())
    return (
        "## Machines\n\nThe load is the mean number of processes that wanted a core, in the quarter of an hour before "
        f"the tests ended.\n\n{lines}"
    )


def _day(test: dict[str, Any]) -> str:
    return str(test["run"]).partition(" ")[0]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main(*files: str) -> None:
    """Take in what other files hold, and write the page."""
    data = json.loads(DATA.read_text(encoding="utf-8"))
    for file in files:
        data = together(data, json.loads(Path(file).read_text(encoding="utf-8")))
    write(DATA, data)
    PAGE.write_text(page(data), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
