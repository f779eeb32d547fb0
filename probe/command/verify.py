"""The command `probe verify`: is a run, or a trace, what was written; what is not is made anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probe.command import completing
from probe.command.exits import exits
from probe.command.places import place
from probe.command.replayed import replayed
from probe.errors import NotAvailable, StoreCorrupt, UsageError
from probe.visible import visible

if TYPE_CHECKING:
    from probe.storage.damage import Damage
    from probe.storage.object_path import Location


def verify(
    context: typer.Context,
    source: Annotated[
        Any,
        typer.Argument(
            parser=place, metavar="PATH", autocompletion=completing.runs, help="Folder or URL of a run or of a trace."
        ),
    ],
    repair: Annotated[
        bool, typer.Option("--repair", help="Take out what is damaged, and play the casebook for that alone.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="With --repair: let the model run code of its own.")
    ] = False,
    remote: Annotated[
        bool, typer.Option("--remote", help="With --repair: let every prompt leave this machine, to NDIF.")
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

        asked = {"trust_remote_code": trust_remote_code, "remote": remote}
        play_again = _replay(source, frozenset(name for name, said in asked.items() if said))
        _list(damage, as_json=as_json)
        lost = forget(source, damage)
        print(f"{len(lost)} units are taken out of {visible(str(source))} and read again", flush=True)
        play_again()
        _tell(source, _damage(source), as_json=as_json)


def _damage(source: Location) -> list[Damage]:
    from probe.storage import trace_store
    from probe.storage.checking import check_run

    if not source.exists():
        raise NotAvailable(f"{source} is not there")
    if (source / "run.json").exists() or (source / "run.copy.json").exists():
        return check_run(source)
    return trace_store.open(source).verify()


def _tell(source: Location, damage: list[Damage], *, as_json: bool) -> None:
    _list(damage, as_json=as_json)
    if not damage:
        if not as_json:
            print(f"{visible(str(source))}: every byte is what was written")
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
        print(visible(str(each)))


def _replay(folder: Location, allowed: frozenset[str]) -> Callable[[], object]:
    """Return what plays the run's record into its folder again: what is there already is not read twice.

    Before anything is touched: raises where the record holds nothing to play, or what nobody allowed.
    """
    from probe.storage.checking import whole_record

    record = whole_record(folder)
    if command := record.get("command"):
        from typer.main import get_command

        from probe.command.cli import app

        words = replayed(str(command), folder, allowed)
        return lambda: get_command(app).main(args=words, prog_name="probe", standalone_mode=False)
    from pydantic import ValidationError

    from probe.casebook import Casebook
    from probe.player import run

    try:
        casebook = Casebook.model_validate_json(json.dumps(record.get("casebook")))
    except ValidationError as error:
        raise StoreCorrupt(f"{folder}: its record holds neither a command nor a casebook") from error
    return lambda: run(casebook, out=folder)
