"""The command that a run's record says it was made with, played into its folder again, as far as it can be trusted."""

from __future__ import annotations

import shlex
from typing import Any, Final, get_args

from probe.command.run_all import ALL
from probe.errors import StoreCorrupt, UsageError
from probe.storage.object_path import Location
from probe.visible import visible

ASKED_AGAIN: Final = {
    "trust_remote_code": "the model would run code of its own, which can do anything",
    "remote": "every prompt would leave this machine",
}
"""Options that a record's word is not enough for, and what each would let happen."""

LEFT_OUT: Final = frozenset(
    [
        "casebook",
        "out",
        "force",
        "dry_run",
        "held",
        "quiet",
        "as_json",
        "max_hours",
        "budget",
        "engine",
        "engine_address",
        "workers",
        "gpus_per_worker",
        "cpus_per_worker",
    ]
)
"""Options that say where a run was written and who read it: it is read again here, into the folder that was named."""


def replayed(command: str, folder: Location, allowed: frozenset[str] = frozenset()) -> list[str]:
    """Return the arguments that play a run's command again, into its own folder and by this process alone.

    Whoever wrote the folder wrote the command: what the caller did not allow by name (`ASKED_AGAIN`) raises UsageError,
    and what is no command of a single run StoreCorrupt.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise _no_command(folder, command) from error
    if words[:2] != ["probe", "run"]:
        raise _no_command(folder, command)
    options, casebook = _parsed(_as_named_now(words[2:]), folder, command)
    for name, why in ASKED_AGAIN.items():
        if options.get(name) and name not in allowed:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{folder}: the command on record says {flag}: {why}. If you trust whoever wrote this folder, say "
                f"{flag} yourself:\n  probe verify {shlex.quote(str(folder))} --repair {flag}"
            )
    given = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in options.items()
        if name not in LEFT_OUT and value is not None and value is not False
    ]
    return ["run", *given, f"--out={folder}", "--", casebook]


def _parsed(words: list[str], folder: Location, command: str) -> tuple[dict[str, Any], str]:
    """Return what the options of a command mean, read as the command line reads them, and its casebook."""
    from typer.main import get_command

    from probe.command.cli import app

    run = get_command(app).commands["run"]  # type: ignore[attr-defined]
    if "--help" in words or "-h" in words:
        raise _no_command(folder, command)
    try:
        options: dict[str, Any] = run.make_context("run", list(words)).params
    # The parser's own errors, whichever library it comes from.
    except Exception as error:
        raise _no_command(folder, command) from error
    named = {"no_check": "no_eager_check"}
    options = {named.get(name, name): value for name, value in options.items()}
    casebook = options["casebook"]
    if casebook == ALL:
        raise _no_command(folder, command)
    return options, casebook


def _as_named_now(words: list[str]) -> list[str]:
    """Return words with what computes attention called the scan: earlier versions called it the engine."""
    from probe.kernels.engine import EngineName

    earlier = words.index("--engine") if "--engine" in words else None
    if earlier is not None and words[earlier + 1 : earlier + 2] and words[earlier + 1] in get_args(EngineName):
        return [*words[:earlier], "--scan", *words[earlier + 1 :]]
    return words


def _no_command(folder: Location, command: str) -> StoreCorrupt:
    return StoreCorrupt(f"{folder}: its record does not hold the command that made it: {visible(command[:200])}")
