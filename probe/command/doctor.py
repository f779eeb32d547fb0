"""The command `probe doctor`: what is installed, what works on this machine, and what to install."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

import probe
from probe.command.exits import exits
from probe.errors import NotAvailable

if TYPE_CHECKING:
    from probe.command.checkup import Check

_MARKS: Final = {"ok": ("✓", "green"), "missing": ("–", "yellow"), "broken": ("✗", "bold red")}
_LIBRARIES: Final = {"huggingface": "transformers", "transformer_lens": "transformer_lens", "nnsight": "nnsight"}
"""What a backend of ours imports; another package's is tried whatever is installed."""


def doctor(
    context: typer.Context,
    folder: Annotated[Path, typer.Option("--out", help="Folder in which runs are to lie.")] = Path(),
    quick: Annotated[bool, typer.Option("--quick", help="Try neither backends nor scans.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for a report of an error.")] = False,
) -> None:
    """Say what is installed, what works here, and what to install. Exits 3 where something needed is missing or broken.

    Nothing is fetched, and neither folders nor names of whoever asks are printed.
    """
    with exits(debug=context.obj):
        found = []
        group = ""
        for check in checks(folder, quick=quick):
            found.append(check)
            if not as_json:
                _print(check, heading=check.group != group)
                group = check.group
        if as_json:
            about = {"probe": probe.__version__, "system": platform.platform(), "checks": [*map(asdict, found)]}
            print(json.dumps(about, indent=2, ensure_ascii=False))
        bad = [check.name for check in found if check.needed and check.state != "ok"]
        if bad:
            raise NotAvailable(f"needed, and missing or broken: {', '.join(bad)}")


def checks(folder: Path, *, quick: bool = False) -> Iterator[Check]:
    """Yield every line, those that need torch last; `folder` is where runs are to lie."""
    from probe import discovery
    from probe.command import checkup
    from probe.command.tried import tried

    if not folder.is_dir():
        raise NotAvailable(f"there is no folder {folder}")
    yield from checkup.packages()
    yield from checkup.machine(folder)
    yield from checkup.specimens()
    yield from checkup.tools()
    if quick:
        return
    backends = discovery.names("backends")
    here = [name for name in backends if find_spec(_LIBRARIES.get(name, "probe")) is not None]
    if find_spec("torch") is not None:
        yield from tried(["scan", *here])
    for name in backends:
        if name not in here:
            # The cure stands with its package.
            said = f"{_LIBRARIES[name]} is not installed"
            yield checkup.Check("backends", name, "missing", said, needed=name == "huggingface")


def _print(check: Check, *, heading: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    from probe.visible import visible

    console = Console()
    if heading:
        console.print(Text(check.group, style="bold"))
    mark, style = _MARKS[check.state]
    line = Text(f"  {mark} ", style=style).append(f"{check.name}: {visible(check.said)}", style="default")
    console.print(line, soft_wrap=True)
    if check.cure and check.state != "ok":
        console.print(Text(f"      {check.cure}", style="cyan"), soft_wrap=True)
