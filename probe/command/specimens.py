"""The command `probe specimens`: the small models that ship, and how to train one anew."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from probe.command import completing
from probe.command.exits import exits
from probe.errors import NotAsExpected

specimens = typer.Typer(
    help="List the specimens that ship; `train` makes one anew and holds it against its card.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@specimens.callback(invoke_without_command=True)
def list_specimens(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """List the specimens that ship; `train` makes one anew and holds it against its card."""
    if context.invoked_subcommand is not None:
        return
    with exits(debug=context.obj):
        from probe.command.terminal_summary import print_specimens
        from probe.specimens import about, folders

        print_specimens({name: about(folder) for name, folder in folders().items()}, as_json=as_json)


@specimens.command("train")
def train_specimen(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(help="Name of a specimen (see `probe specimens`).", autocompletion=completing.specimen_names),
    ],
    out: Annotated[Path, typer.Option(help="Folder to make for the model.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train a specimen anew, measure it, and exit 1 where a figure is not within the bounds on its card."""
    with exits(debug=context.obj):
        from probe.command.terminal_summary import print_compared
        from probe.specimens import train

        rows = train(name, out, seed=seed)
        if as_json:
            print(json.dumps([{**dataclasses.asdict(row), "within": row.within} for row in rows], indent=2))
        else:
            print_compared(rows)
        if outside := [row for row in rows if not row.within]:
            raise NotAsExpected(f"{len(outside)} of {len(rows)} figures are not within the bounds on the card")
