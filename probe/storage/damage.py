"""What in a store is not as it was written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from probe.errors import NotAvailable, StoreCorrupt
from probe.storage.durable import file_hash
from probe.storage.manifest import Manifest, place
from probe.storage.object_path import Location


@dataclass(frozen=True)
class Damage:
    """One file that is not as it was written."""

    unit: str
    """The unit it belongs to; empty for a file of the run."""
    path: str
    """The file, relative to the unit's folder or to the run's."""
    problem: str
    """What is wrong with it."""

    @property
    def array(self) -> str | None:
        """Name of the array that the file belongs to; None for a file that belongs to none."""
        if "/" not in self.path:
            return None
        return self.path.partition("/c/")[0].removesuffix("/zarr.json")

    @property
    def chunk(self) -> str | None:
        """Index of the chunk, e.g. `3/0/0`; None for a file that is none."""
        return self.path.partition("/c/")[2] or None

    def __str__(self) -> str:
        where = f"unit {self.unit}: " if self.unit else ""
        return f"{where}{place(self.path)} {self.problem}"


def damage_of(unit: str, folder: Location, manifest: Manifest) -> list[Damage]:
    """Read every byte of a unit and return what is not as its manifest says."""
    return [Damage(unit, path, problem) for path, problem in _problems(folder, manifest)]


def _problems(folder: Location, manifest: Manifest) -> Iterator[tuple[str, str]]:
    where_from = {entry.sha256: path for path, entry in manifest.files.items()}
    for path, entry in sorted(manifest.files.items()):
        try:
            size, sha256 = file_hash(folder / path, max(2 * entry.size, 2**20))
        except NotAvailable:
            yield path, "is missing"
            continue
        except StoreCorrupt as error:
            yield path, f"cannot be read: {error}"
            continue
        if sha256 == entry.sha256:
            continue
        if sha256 in where_from:
            yield path, f"holds what was written as {place(where_from[sha256])}"
        elif size != entry.size:
            yield path, f"has {size} bytes where {entry.size} were written"
        else:
            yield path, "is not what was written: its hash differs"
