"""The commit record: an append-only file that decides which units count as written."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from probe.errors import NotAvailable, StoreCorrupt, UsageError
from probe.storage.commit_segments import CommitSegments
from probe.storage.durable import canonical_json, parse_json, read_bytes, sync_folder, write_bytes
from probe.storage.object_path import Location, ObjectPath

UNIT_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,120}")
"""What a unit may be called; also the name of its folder."""

_MAX_BYTES: Final = 48 * 2**20


class Commits:
    """The committed units of one run folder, in the order of their commits.

    Each line is a JSON object with its own checksum. A last line that a crash cut short is dropped and counted in
    `torn`; any other line that is not what was written raises StoreCorrupt naming it.
    """

    def __init__(self, path: Location) -> None:
        self.path = path
        """The record, `commits.jsonl`."""
        self.torn = 0
        """1 where a last line was cut short, else 0."""
        self._units: dict[str, Mapping[str, Any]] = {}
        self._valid_bytes = 0
        self._segments = CommitSegments(path) if isinstance(path, ObjectPath) else None
        self._read()

    @property
    def units(self) -> Mapping[str, Mapping[str, Any]]:
        """The record of each committed unit, by unit."""
        return MappingProxyType(self._units)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a unit's record and force it to the disk; when this returns, the unit is committed."""
        if record["unit"] in self._units:
            raise StoreCorrupt(f"{self.path}: unit {record['unit']!r} is committed already")
        line = _line(record)
        if isinstance(self.path, Path):
            self._append(self.path, line)
        elif self._segments is not None:
            self._segments.append(line, len(self._units))
        self._units[record["unit"]] = dict(record)

    def fold(self) -> None:
        """In object storage, gather the record's lines in its one object; elsewhere they lie in one file already."""
        if self._segments is not None:
            self._segments.fold(_MAX_BYTES)
            if self.torn:
                self.rewrite(self.path, self._units)
                self.torn = 0

    def _append(self, path: Path, line: bytes) -> None:
        new = not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        with os.fdopen(descriptor, "wb") as file:
            # Whatever stands after the last whole line is a torn one: the new line takes its place.
            file.truncate(self._valid_bytes)
            file.seek(self._valid_bytes)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync_folder(path.parent)
        self._valid_bytes += len(line)
        self.torn = 0

    @classmethod
    def salvaged(cls, path: Location) -> dict[str, Mapping[str, Any]]:
        """Return the entries that are as they were written, by unit, whatever became of the others."""
        found: dict[str, Mapping[str, Any]] = {}
        with contextlib.suppress(NotAvailable, StoreCorrupt):
            data = (
                CommitSegments(path).salvaged(_MAX_BYTES)
                if isinstance(path, ObjectPath)
                else read_bytes(path, _MAX_BYTES)
            )
            for number, line in enumerate(data.split(b"\n"), start=1):
                with contextlib.suppress(StoreCorrupt):
                    record = _record(line, f"{path}, line {number}")
                    found.setdefault(record["unit"], record)
        return found

    @staticmethod
    def rewrite(path: Location, units: Mapping[str, Mapping[str, Any]]) -> None:
        """Put these entries in the place of all that the record holds, at once or not at all."""
        lines = b"".join(_line(record) for record in units.values())
        if isinstance(path, ObjectPath):
            CommitSegments(path).rewrite(lines, _MAX_BYTES)
        else:
            write_bytes(path, lines)

    def _read(self) -> None:
        try:
            data = self._segments.read(_MAX_BYTES) if self._segments else read_bytes(self.path, _MAX_BYTES)
        except NotAvailable:
            return
        *whole, rest = data.split(b"\n")
        # A crash can leave the end of a line as zeros even where its newline arrived.
        if whole and b"\0" in whole[-1] and not rest:
            rest = whole.pop()
        self.torn = int(bool(rest))
        for number, line in enumerate(whole, start=1):
            record = _record(line, f"{self.path}, line {number}")
            if record["unit"] in self._units:
                raise StoreCorrupt(f"{self.path}, line {number}: unit {record['unit']!r} was committed before")
            self._units[record["unit"]] = record
        self._valid_bytes = sum(len(line) + 1 for line in whole)


def _line(record: Mapping[str, Any]) -> bytes:
    checksum = hashlib.sha256(canonical_json(dict(record)).encode()).hexdigest()
    return canonical_json({**record, "checksum": checksum}).encode() + b"\n"


def _record(line: bytes, name: str) -> Mapping[str, Any]:
    value = parse_json(line, name)
    if not isinstance(value, dict):
        raise StoreCorrupt(f"{name} is not a commit")
    value.pop("checksum", None)
    # Writing it again covers the checksum, the spelling and everything else at once.
    try:
        intact = _line(value) == line + b"\n"
    except UsageError:
        intact = False
    if not intact:
        raise StoreCorrupt(f"{name} was altered: its checksum does not hold")
    unit = value.get("unit")
    if not isinstance(unit, str) or not UNIT_ID.fullmatch(unit) or not isinstance(value.get("manifest"), str):
        raise StoreCorrupt(f"{name} does not name a unit and its manifest")
    return value
