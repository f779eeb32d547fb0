"""The commit record in object storage, where nothing can be appended to: new lines lie beside it, and are gathered.

`commits/00000007.jsonl` holds lines that follow the first seven of the record, one line when it is put; every 256 of
these become one, and `commits.jsonl` takes all of them up when a writer begins and when it ends. So a line is written
three times at most while a run is written, however long that gets, and a run that has ended is the files of a folder.
"""

from __future__ import annotations

import contextlib
import re
from typing import Final

from probe.errors import NotAvailable, RunFolderInUse, StoreCorrupt
from probe.storage.far import all_of
from probe.storage.object_lease import assure
from probe.storage.object_path import ObjectPath

SEGMENTS: Final = "commits"
"""The folder in the run in which lines lie that `commits.jsonl` does not hold yet."""
GATHERED: Final = 256
"""Lines that are gathered into one object."""

_NAME: Final = re.compile(r"[0-9]{8,12}\.jsonl")
_TIMES: Final = 5
_MOST_BYTES: Final = 2**24


class CommitSegments:
    """The lines of one run's commit record."""

    def __init__(self, path: ObjectPath) -> None:
        """`path` is the record, `commits.jsonl`."""
        self._path = path
        self._folder = path.parent / SEGMENTS
        self._single: dict[str, bytes] = {}

    def read(self, limit: int) -> bytes:
        """Return all lines; NotAvailable where there is no record, StoreCorrupt naming an object that is missing."""
        for left in reversed(range(_TIMES)):
            try:
                return self._read(limit, missing=False)
            except StoreCorrupt:
                # A writer may have gathered some between the listing and the reading.
                if not left:
                    raise
        raise AssertionError

    def salvaged(self, limit: int) -> bytes:
        """Return the lines that are there, whichever are missing; NotAvailable where there is none."""
        return self._read(limit, missing=True)

    def append(self, line: bytes, number: int) -> None:
        """Add the line that follows the first `number`; raises RunFolderInUse where another process added one."""
        assure(self._path.parent)
        name = _name(number)
        try:
            (self._folder / name).create(line)
        except FileExistsError:
            # It may be ours: an answer that was lost on its way, and the same put again.
            if (self._folder / name).read(_MOST_BYTES) != line:
                raise RunFolderInUse(f"{self._path.parent} was written to by another process meanwhile") from None
        self._single[name] = line
        if len(self._single) == GATHERED:
            first, *rest = self._single
            (self._folder / first).write(b"".join(self._single.values()))
            self._folder.remove(rest)
            self._single.clear()

    def rewrite(self, lines: bytes, limit: int) -> None:
        """Put these lines in the place of all, such that a crash at any moment leaves the ones or the others."""
        # A record that cannot be read is replaced as it is.
        with contextlib.suppress(StoreCorrupt):
            self.fold(limit)
        self._path.write(lines)
        self._remove(self._names())

    def fold(self, limit: int) -> None:
        """Take up in `commits.jsonl` what lies beside it."""
        names = self._names()
        if names:
            assure(self._path.parent)
            self._path.write(self.read(limit))
            self._remove(names)

    def _remove(self, names: list[str]) -> None:
        self._folder.remove(names)
        self._single.clear()

    def _names(self) -> list[str]:
        found = (each.name for each in self._folder.iterdir())
        return sorted((name for name in found if _NAME.fullmatch(name)), key=_number)

    def _read(self, limit: int, *, missing: bool) -> bytes:
        names = self._names()
        segments = dict(zip(names, all_of(lambda name: self._segment(name, limit), names, far=True), strict=True))
        # Last: what a writer takes up while the others are read is in it.
        try:
            data = self._path.read(limit)
        except NotAvailable:
            if not names:
                raise
            data = b""
        for name, lines in segments.items():
            reached, begins = data.count(b"\n"), _number(name)
            if begins > reached and not missing:
                raise StoreCorrupt(f"{self._folder / _name(reached)} is missing")
            data += b"".join(lines.splitlines(keepends=True)[max(0, reached - begins) :])
            if len(data) > limit:
                raise StoreCorrupt(f"{self._path} has more than the {limit} bytes that it may have")
        return data

    def _segment(self, name: str, limit: int) -> bytes:
        try:
            return (self._folder / name).read(limit)
        except NotAvailable:
            return b""


def _name(number: int) -> str:
    return f"{number:08d}.jsonl"


def _number(name: str) -> int:
    return int(name.removesuffix(".jsonl"))
