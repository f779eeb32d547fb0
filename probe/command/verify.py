"""The command `probe verify`: is a run, or a trace, what was written; what is not is made anew."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from probe.command.exits import exits
from probe.errors import NotAvailable, StoreCorrupt, UsageError

if TYPE_CHECKING:
    from probe.storage.damage import Damage


def verify(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="Folder of a run or of a trace.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Take out what is damaged, and play the casebook for that alone.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what is damaged as JSON.")] = False,
) -> None:
    """Hold every byte against what was written. Exits 5 where something is damaged and was not repaired."""
    with exits(debug=context.obj):
        damage = _damage(source)
        if not repair:
            _tell(source, damage, as_json=as_json)
            return
        if not (source / "commits.jsonl").exists() or (source / "trace.json").exists():
            raise UsageError(f"{source} is a trace of its own: there is no casebook to make it anew from")
        if not damage:
            _tell(source, damage, as_json=as_json)
            return
        from probe.storage.checking import forget

        _list(damage, as_json=as_json)
        lost = forget(source, damage)
        print(f"{len(lost)} units are taken out of {source} and read again", flush=True)
        _play_again(source)
        _tell(source, _damage(source), as_json=as_json)


def _damage(source: Path) -> list[Damage]:
    from probe.storage import trace_store
    from probe.storage.checking import check_run

    if not source.exists():
        raise NotAvailable(f"{source} is not there")
    if (source / "run.json").exists() or (source / "run.copy.json").exists():
        return check_run(source)
    return trace_store.open(source).verify()


def _tell(source: Path, damage: list[Damage], *, as_json: bool) -> None:
    _list(damage, as_json=as_json)
    if not damage:
        if not as_json:
            print(f"{source}: every byte is what was written")
        return
    units = len({each.unit for each in damage if each.unit})
    raise StoreCorrupt(
        f"{source}: {len(damage)} files are not what was written, in {units} units; `probe verify {source} --repair` "
        "makes them anew where the model is at hand"
    )


def _list(damage: list[Damage], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([{"unit": d.unit, "path": d.path, "problem": d.problem} for d in damage], indent=1))
        return
    for each in damage:
        print(each)


def _play_again(folder: Path) -> None:
    """Play what the run's record says into its folder again: what is there already is not read twice."""
    from probe.storage.trace_store import Run

    record = Run(folder).record
    if command := record.get("command"):
        from typer.main import get_command

        from probe.command.cli import app

        words = _into(shlex.split(str(command)), folder)
        get_command(app).main(args=words, prog_name="probe", standalone_mode=False)
        return
    from probe.casebook import Casebook
    from probe.player import run

    run(Casebook.model_validate(record["casebook"]), out=folder)


def _into(words: list[str], folder: Path) -> list[str]:
    """Return the arguments of a run's command with its folder put in: the run may have been moved since."""
    if words[:2] != ["probe", "run"]:
        raise StoreCorrupt(f"{folder}: its record does not hold the command that made it: {shlex.join(words)[:200]}")
    from probe.kernels.engine import EngineName

    # Earlier versions called what computes attention the engine.
    earlier = words.index("--engine") if "--engine" in words else None
    if earlier is not None and words[earlier + 1] in get_args(EngineName):
        words = [*words[:earlier], "--scan", *words[earlier + 1 :]]
    arguments = words[1:]
    if "--out" in arguments:
        at = arguments.index("--out")
        return [*arguments[: at + 1], str(folder), *arguments[at + 2 :]]
    return [*arguments, "--out", str(folder)]
