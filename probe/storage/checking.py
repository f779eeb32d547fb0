"""Is a run folder what was written? Every byte of it is held against a hash; what is damaged can be made anew."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

from probe.errors import NotAvailable, StoreCorrupt
from probe.storage.commits import Commits
from probe.storage.damage import Damage, damage_of
from probe.storage.durable import read_json, write_json
from probe.storage.hold import hold
from probe.storage.object_path import Location
from probe.storage.seal import COPY, damaged_record, file_hashes, read_sealed, unsealed
from probe.storage.unit_files import SealedFiles, discard_folder

SEALED: Final = ("findings.json", "report.html")
"""Files of a run whose hashes its record holds once it has ended."""

ROOT_GROUP: Final[dict[str, Any]] = {
    "zarr_format": 3,
    "node_type": "group",
    "attributes": {"holds": "one group for each unit"},
}
"""What `trace.zarr/zarr.json` says."""


def check_run(folder: Location) -> list[Damage]:
    """Read every byte of a run and return what is not as it was written; empty where all is well.

    Covered are the record and its copy, the commit record, every file of every unit and, once the run has ended, its
    findings and its report. `.lock` holds nothing of the run's.
    """
    return [*_records(folder), *_commits(folder), *_units(folder), *_results(folder)]


def check_units(folder: Location, commits: Commits) -> Iterator[Damage]:
    """Yield what is damaged in the units that are on record."""
    if commits.torn:
        yield Damage("", "commits.jsonl", "ends in a torn entry, which does not count")
    for unit, record in commits.units.items():
        yield from _unit(unit, folder / "trace.zarr" / unit, str(record["manifest"]))


def forget(folder: Location, damage: Iterable[Damage]) -> list[str]:
    """Take what is damaged out of a run folder, so that playing its casebook again makes that and nothing else anew.

    Units that are damaged lose their entry and their files, a record is written again from its copy, findings and
    report go. Returns the units that are to be read again. Raises StoreCorrupt where neither the record nor its copy
    can be read, RunFolderInUse where a process is at it.
    """
    damaged = list(damage)
    units = folder / "trace.zarr"
    if units.is_symlink():
        # What it leads to is somebody else's, whatever the record says of it.
        raise StoreCorrupt(f"{units} is a link; a run folder holds none")
    with hold(folder):
        record = whole_record(folder)
        kept = Commits.salvaged(folder / "commits.jsonl")
        lost = {each.unit for each in damaged if each.unit}
        if any(each.path == "commits.jsonl" for each in damaged) or lost:
            Commits.rewrite(folder / "commits.jsonl", {u: r for u, r in kept.items() if u not in lost})
        for unit in lost:
            discard_folder(units / unit)
        if any(each.path == "trace.zarr/zarr.json" for each in damaged):
            units.mkdir(exist_ok=True)
            write_json(units / "zarr.json", ROOT_GROUP)
        for name in SEALED:
            (folder / name).unlink(missing_ok=True)
        for name in ("run.json", COPY):
            write_json(folder / name, record)
    return sorted(lost)


def _records(folder: Location) -> Iterator[Damage]:
    first, second = folder / "run.json", folder / COPY
    if not second.exists() and unsealed(first):
        # An earlier version wrote it: there is nothing to hold it against.
        return
    problems = {path: damaged_record(path) for path in (first, second)}
    yield from (Damage("", path.name, problem) for path, problem in problems.items() if problem is not None)
    if any(problems.values()):
        return
    record = read_sealed(first)
    # A crash between the two leaves the copy one step behind; a run that has ended wrote both.
    if record.get("status") != "running" and record != read_sealed(second):
        yield Damage("", COPY, "is not the same as run.json")


def _commits(folder: Location) -> Iterator[Damage]:
    path = folder / "commits.jsonl"
    try:
        Commits(path)
    except StoreCorrupt as error:
        yield Damage("", "commits.jsonl", f"is not what was written: {error}")
    if path.exists():
        with contextlib.suppress(NotAvailable, StoreCorrupt):
            if read_json(folder / "trace.zarr" / "zarr.json") == ROOT_GROUP:
                return
        yield Damage("", "trace.zarr/zarr.json", "is not what was written")


def _units(folder: Location) -> Iterator[Damage]:
    path = folder / "commits.jsonl"
    try:
        commits = Commits(path)
    except StoreCorrupt:
        for unit, record in Commits.salvaged(path).items():
            yield from _unit(unit, folder / "trace.zarr" / unit, str(record["manifest"]))
        return
    yield from check_units(folder, commits)


def _unit(unit: str, folder: Location, manifest: str) -> Iterator[Damage]:
    try:
        files = SealedFiles(folder, manifest, check_sizes=False)
    except StoreCorrupt as error:
        yield Damage(unit, "manifest.json", str(error))
        return
    yield from damage_of(unit, folder, files.manifest)


def _results(folder: Location) -> Iterator[Damage]:
    try:
        record = whole_record(folder)
    except StoreCorrupt:
        return
    hashes = record.get("files")
    if not isinstance(hashes, dict):
        return
    there = file_hashes(folder, SEALED)
    for name, sha256 in hashes.items():
        if name not in there:
            yield Damage("", name, "is missing")
        elif there[name] != sha256:
            yield Damage("", name, "is not what was written: its hash differs")


def whole_record(folder: Location) -> dict[str, Any]:
    """Return a run's record, from its copy where need be; raises StoreCorrupt where neither is what was written."""
    for name in ("run.json", COPY):
        if damaged_record(folder / name) is None:
            return read_sealed(folder / name)
    raise StoreCorrupt(
        f"{folder}: neither run.json nor {COPY} can be read; the command that made the run starts it anew"
    )
