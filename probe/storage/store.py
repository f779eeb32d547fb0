"""Where units are written: a run folder, or memory."""

from __future__ import annotations

import contextlib
import hashlib
import re
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from probe.errors import StoreCorrupt, UsageError
from probe.sample import Sample
from probe.storage.array import Array
from probe.storage.checking import ROOT_GROUP
from probe.storage.commits import UNIT_ID, Commits
from probe.storage.durable import canonical_json, half_written, sync_folder, write_json
from probe.storage.hold import hold
from probe.storage.object_lease import is_held
from probe.storage.object_path import Location, ObjectPath, location
from probe.storage.unit_files import MemoryFiles, SealedFiles, is_unit, open_files, remove_unit
from probe.storage.unit_trace import Trace
from probe.storage.unit_writer import UnitWriter

__all__ = ["Array", "MemoryStore", "RunStore", "UnitWriter", "clear", "hold", "unit_id", "write_json"]

CONTENTS: Final = ("trace.json", "findings.json", "report.html", "report.html.part", "run.copy.json", "cost.json")
"""What a run folder holds besides the lock, `run.json`, `commits.jsonl` and the units in `trace.zarr`."""


class RunStore:
    """Writes the units of one run folder, and says which are written.

    The first `begin_unit` holds the folder until `close` (RunFolderInUse where another process does) and removes what
    an earlier writer left half done.
    """

    def __init__(self, path: Location | str) -> None:
        """Open a run folder to write; raises StoreCorrupt where its commit record is damaged."""
        self.path = location(path)
        """The run folder."""
        self._units = self.path / "trace.zarr"
        self._commits = Commits(self.path / "commits.jsonl")
        self._held = contextlib.ExitStack()
        self._free = weakref.finalize(self, self._held.close)
        self._writing = False

    def committed(self) -> dict[str, Mapping[str, Any]]:
        """Return what each committed unit is (`unit`, `stage`, `condition`, `role`, `sample`, `failed`), by unit."""
        return dict(self._commits.units)

    def begin_unit(
        self,
        unit: str,
        *,
        stage: str = "",
        condition: str = "",
        facts: Mapping[str, Any] | None = None,
        sample: Sample,
        provenance: Mapping[str, Any] | None = None,
        layers: Sequence[int] | None = None,
        place: Sequence[int] | None = None,
    ) -> UnitWriter:
        """Begin a unit; `layers` names those that will be written, where they are not 0, 1, 2, …

        `place` is where it stands among the units of its run, which are read in that order whenever they were written.

        Raises UsageError where the unit is committed already, or its name, facts or sample are not what can be stored.
        """
        self._hold()
        if unit in self._commits.units:
            raise UsageError(f"unit {unit!r} is committed already in {self.path}")
        if not UNIT_ID.fullmatch(unit):
            raise UsageError(f"{unit!r} cannot name a unit: small letters, digits, '.', '_' and '-', at most 121")
        folder = self._units / unit
        if is_unit(folder):
            raise UsageError(f"unit {unit!r} is being written already in {self.path}")
        if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
            raise UsageError(f"{folder} is where unit {unit!r} belongs, and was not made for one; move it away")
        # Before the folder is made, so that what cannot be stored leaves none behind.
        about = {"stage": stage, "condition": condition, "facts": dict(facts or {}), "provenance": provenance or {}}
        canonical_json([about, sample.to_json()])
        return UnitWriter(
            unit,
            open_files(folder),
            self._commits.append,
            stage=stage,
            condition=condition,
            facts=facts or {},
            sample=sample,
            provenance=provenance or {},
            layers=layers,
            place=place,
        )

    def make_ready(self) -> None:
        """Hold the folder and clear it of what was left half done, so that units can be written into it."""
        self._hold()

    def adopt(self, record: Mapping[str, Any]) -> None:
        """Put on record a unit that another process wrote into this folder (see `probe.storage.handed_over`).

        Raises StoreCorrupt where it is not there as the record says.
        """
        self._hold()
        SealedFiles(self._units / record["unit"], record["manifest"])
        self._commits.append(record)

    def forget(self, units: Collection[str]) -> None:
        """Take committed units out: of the record at once, then of the disk. A crash between leaves none half there."""
        self._hold()
        Commits.rewrite(self._commits.path, {u: r for u, r in self._commits.units.items() if u not in units})
        self._commits = Commits(self._commits.path)
        for unit in units:
            remove_unit(self._units / unit)

    def trace(self, unit: str) -> Trace:
        """Return a committed unit, read back from the disk."""
        if unit not in self._commits.units:
            raise UsageError(f"there is no unit {unit!r} in {self.path}")
        return Trace.open(self._units / unit, self._commits.units[unit])

    def close(self) -> None:
        """Let the folder go."""
        # Where all was there already, what a session before could not gather is left.
        try:
            if self._free.alive and (self._writing or (isinstance(self.path, ObjectPath) and is_held(self.path))):
                self._commits.fold()
        finally:
            self._free()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        # What went wrong is said, not that the store could not be tidied up for it.
        self._free()

    def _hold(self) -> None:
        if self._writing:
            return
        if not self._free.alive:
            raise UsageError(f"the store {self.path} is closed")
        self._held.enter_context(hold(self.path))
        # Another process may have written between the opening of this store and now.
        self._commits = Commits(self.path / "commits.jsonl")
        if self._units.is_symlink():
            raise StoreCorrupt(f"{self._units} is a link; a run folder holds none")
        self._commits.fold()
        for leftover in _uncommitted(self._units, self._commits):
            remove_unit(leftover)
        if isinstance(self._units, Path) and self._units.is_dir():
            for path in filter(half_written, list(self._units.iterdir())):
                path.unlink()
        if not (self._units / "zarr.json").is_file():
            self._units.mkdir(exist_ok=True)
            write_json(self._units / "zarr.json", ROOT_GROUP)
            sync_folder(self.path)
        self._writing = True


class MemoryStore:
    """Keeps units in memory, written by the same writer, for notebooks."""

    def __init__(self) -> None:
        self._files: dict[str, MemoryFiles] = {}
        self._records: dict[str, Mapping[str, Any]] = {}

    def committed(self) -> dict[str, Mapping[str, Any]]:
        """Return the record of each committed unit, by unit."""
        return dict(self._records)

    def begin_unit(
        self,
        unit: str,
        *,
        stage: str = "",
        condition: str = "",
        facts: Mapping[str, Any] | None = None,
        sample: Sample,
        provenance: Mapping[str, Any] | None = None,
        layers: Sequence[int] | None = None,
    ) -> UnitWriter:
        """Begin a unit, as `RunStore.begin_unit` does."""
        if unit in self._records:
            raise UsageError(f"unit {unit!r} is committed already")
        files = MemoryFiles()

        def committed(record: Mapping[str, Any]) -> None:
            self._files[unit], self._records[unit] = files, dict(record)

        return UnitWriter(
            unit,
            files,
            committed,
            stage=stage,
            condition=condition,
            facts=facts or {},
            sample=sample,
            provenance=provenance or {},
            layers=layers,
        )

    def trace(self, unit: str) -> Trace:
        """Return a committed unit."""
        if unit not in self._records:
            raise UsageError(f"there is no unit {unit!r} in memory")
        return Trace(self._files[unit])

    def traces(self) -> list[Trace]:
        """Return every committed unit, in the order of their commits."""
        return [self.trace(unit) for unit in self._records]


def unit_id(prefix: str, identity: Mapping[str, Any]) -> str:
    """Return a readable, unique name for a unit: the prefix, and a hash of the JSON values that make it what it is."""
    slug = re.sub(r"[^a-z0-9._]+", "-", prefix.lower()).strip("-._")[:100].strip("-._") or "unit"
    return f"{slug}-{hashlib.sha256(canonical_json(dict(identity)).encode()).hexdigest()[:12]}"


def clear(path: Location | str) -> None:
    """Remove a run from its folder, and nothing else that is in it; raises RunFolderInUse where a process holds it.

    `run.json` goes last, so that what a crash leaves is still a run, to be continued or cleared again.
    """
    with hold(path):
        folder = location(path)
        if isinstance(folder, ObjectPath):
            _clear_objects(folder)
            return
        units = folder / "trace.zarr"
        committed: set[str] = set()
        with contextlib.suppress(StoreCorrupt):
            committed.update(Commits(folder / "commits.jsonl").units)
        # The commit record first: from then on no unit counts as written.
        (folder / "commits.jsonl").unlink(missing_ok=True)
        if units.is_dir() and not units.is_symlink():
            for unit in _units_in(units):
                remove_unit(unit)
            for unit in (units / name for name in committed):
                if unit.is_dir() and not unit.is_symlink():
                    remove_unit(unit)
            (units / "zarr.json").unlink(missing_ok=True)
            if not any(units.iterdir()):
                units.rmdir()
        for name in CONTENTS:
            for aside in folder.glob(f".{name}.[0-9]*.writing"):
                aside.unlink()
            (folder / name).unlink(missing_ok=True)
        sync_folder(folder)
        (folder / "run.json").unlink(missing_ok=True)


def _clear_objects(folder: ObjectPath) -> None:
    """Remove a run's objects: first its commit record, whose newest lines go last but for `run.json`."""
    Commits.rewrite(folder / "commits.jsonl", {})
    for unit in (folder / "trace.zarr").iterdir():
        if is_unit(unit):
            remove_unit(unit)
    folder.remove([name for name in ("commits.jsonl", "trace.zarr/zarr.json", *CONTENTS) if (folder / name).is_file()])
    (folder / "run.json").unlink(missing_ok=True)


def _units_in(units: Path) -> list[Path]:
    return [folder for folder in sorted(units.iterdir()) if is_unit(folder)] if units.is_dir() else []


def _uncommitted(units: Location, commits: Commits) -> Iterator[Location]:
    """Yield what was begun and never committed; what is committed is not looked at, of which there may be much."""
    if isinstance(units, ObjectPath) or units.is_dir():
        there: list[Location] = sorted(units.iterdir(), key=str)
        yield from (folder for folder in there if folder.name not in commits.units and is_unit(folder))
