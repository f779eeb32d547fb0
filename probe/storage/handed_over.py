"""Units that one process writes into the folder of a run that another holds, and puts on record."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from probe.errors import NotAvailable, RunFolderInUse
from probe.sample import Sample
from probe.storage.durable import read_bytes, sync_folder, write_bytes
from probe.storage.unit_files import OpenFiles, is_unit, remove_unit
from probe.storage.unit_writer import UnitWriter

_MOST_BYTES = 1000
_APART = "~"
"""Stands between a unit and the attempt at it in a folder's name; no unit's own name has one."""


@contextlib.contextmanager
def posted(folder: Path) -> Iterator[tuple[str, str]]:
    """Leave a token in a run's folder for the length of the block; yield the file's name and the token.

    Who reads the same token there sees the same folder, and for as long as it stands the run goes on. What a crash
    leaves of it the next writer of the folder removes, as it does whatever is `half_written`.
    """
    path, token = folder / f".engine.{os.getpid()}.writing", secrets.token_hex(16)
    write_bytes(path, token.encode())
    try:
        yield path.name, token
    finally:
        path.unlink(missing_ok=True)


class HandedOver:
    """Writes units for the process that holds a run's folder.

    A unit is written beside its place and moved there when it is whole, so that two processes of which one was given up
    for dead never write to the same files.
    """

    def __init__(self, folder: Path, posted: tuple[str, str]) -> None:
        """Open the folder; raises RunFolderInUse where it is not the one in which the token was posted."""
        self.folder = folder
        """The run's folder, as this machine calls it."""
        self._posted = posted
        self.check()

    def check(self) -> None:
        """Raise RunFolderInUse where the run has ended, or this is another folder than its own."""
        name, token = self._posted
        try:
            found = read_bytes(self.folder / name, _MOST_BYTES).decode(errors="replace")
        except NotAvailable:
            found = ""
        if found != token:
            raise RunFolderInUse(f"{self.folder} is not, or not any more, the folder of the run that is being read")

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
        """Begin a unit, as `RunStore.begin_unit` does; `commit` puts it into its place, and its record on no list."""
        self.check()
        aside = self.folder / "trace.zarr" / f"{unit}{_APART}{secrets.token_hex(4)}"
        return UnitWriter(
            unit,
            OpenFiles(aside),
            lambda _: self._move(aside, aside.with_name(unit)),
            stage=stage,
            condition=condition,
            facts=facts or {},
            sample=sample,
            provenance=provenance or {},
            layers=layers,
            place=place,
        )

    def _move(self, aside: Path, unit: Path) -> None:
        try:
            self.check()
            # From another attempt, whose process ended before it could say so: the unit would else be on record.
            if is_unit(unit):
                remove_unit(unit)
            aside.rename(unit)
            sync_folder(unit.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                remove_unit(aside)
            raise


def remove_attempts(folder: Path, unit: str = "*") -> None:
    """Remove what was begun of a unit, or of any, beside its place; what cannot be removed the next writer will."""
    for aside in (folder / "trace.zarr").glob(f"{unit}{_APART}*"):
        if is_unit(aside):
            with contextlib.suppress(OSError):
                remove_unit(aside)


def occupied_bytes(folder: Path) -> int:
    """Return what the files in a folder take of the disk, in bytes."""
    found = (path.lstat() for path in folder.rglob("*") if path.is_file())
    return sum(max(stat.st_size, 512 * getattr(stat, "st_blocks", 0)) for stat in found)
