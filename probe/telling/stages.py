"""How far a run has come: units read of units planned, stage by stage, and how to go on where it was stopped."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probe.storage.hold import abandoned

if TYPE_CHECKING:
    from probe.storage.trace_store import Run


@dataclass(frozen=True)
class StageProgress:
    """One stage of a casebook."""

    name: str
    num_done: int
    """Units that are committed."""
    num_planned: int | None
    """Units that it will have; None before its conditions are known, which earlier findings may name."""
    skipped: str = ""
    """Why it was not played; empty where it was, or will be."""

    def __str__(self) -> str:
        if self.skipped:
            return f"{self.name}: not played"
        if self.num_planned is None:
            return f"{self.name}: {self.num_done:,} units" if self.num_done else f"{self.name}: to come"
        return f"{self.name}: {self.num_done:,} of {self.num_planned:,} units"


def stages_of(run: Run) -> list[StageProgress]:
    """Return how far each stage has come, in the casebook's order; [] for a run without one."""
    record = run.record
    casebook, played = record.get("casebook"), record.get("stages")
    listed = casebook.get("stages") if isinstance(casebook, Mapping) else None
    if not isinstance(listed, list) or not isinstance(played, Mapping):
        return []
    done = Counter(str(unit.get("stage") or "") for unit in run.units.values())
    found = []
    for stage in listed:
        name = str(stage.get("name", "")) if isinstance(stage, Mapping) else ""
        facts: Mapping[str, Any] = played[name] if isinstance(played.get(name), Mapping) else {}
        planned = facts.get("num_units")
        known = planned if type(planned) is int else None
        found.append(StageProgress(name, done[name], known, str(facts.get("skipped") or "")))
    return found


def is_running(run: Run) -> bool:
    """Return whether a run says that it is being written, and no process of this machine that did has ended."""
    return run.record.get("status") == "running" and not abandoned(run.path)


def how_it_ended(run: Run) -> str:
    """Return in a sentence that a run was stopped or killed before its end; empty where it was neither."""
    status = run.record.get("status")
    if status == "stopped":
        return "This run was stopped before its end. What stands here rests on the units that were read so far."
    if status == "running" and abandoned(run.path):
        return (
            "This run was ended from outside: its process is gone. What stands here rests on the units that were read "
            "so far."
        )
    return ""


def command_of(record: Mapping[str, Any]) -> str:
    """Return the command that plays a run, and goes on with one that was stopped; empty where none was noted.

    It is shown to be copied into a shell, and whoever wrote the folder wrote it: what is more than one `probe run`, its
    words quoted, is none.
    """
    command = str(record.get("command") or "")
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    return command if words[:2] == ["probe", "run"] and shlex.join(words) == command else ""
