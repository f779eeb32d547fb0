"""How much a run may take, of time and of disk: it stops cleanly at the first unit beyond, and goes on later."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Final

from probe.errors import StoppedByLimit, UsageError
from probe.storage.object_path import Location, ObjectPath

_UNITS: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS_BINARY: Final = {f"{unit}IB": 2 ** (10 * power) for power, unit in enumerate("KMGT", start=1)}


@dataclass
class Limits:
    """What a run may take. None is no limit."""

    max_seconds: float | None = None
    """Wall-clock time from when the limits were made."""
    max_bytes: int | None = None
    """Size of the run folder."""
    _began: float = field(default_factory=time.monotonic)
    _bytes: int | None = None

    def check(self, folder: Location) -> None:
        """Raise StoppedByLimit where a limit is reached. Called before each unit; one that is begun is ended."""
        if self.max_seconds is not None and time.monotonic() - self._began >= self.max_seconds:
            raise StoppedByLimit(f"the {self.max_seconds / 3600:g} hours that the run may take are over")
        if self.max_bytes is not None:
            if self._bytes is None:
                self._bytes = folder_bytes(folder)
            if self._bytes >= self.max_bytes:
                raise StoppedByLimit(
                    f"{folder} holds {self._bytes / 1e9:.3g} of the {self.max_bytes / 1e9:g} GB that the run may take"
                )

    def add(self, unit: Location) -> None:
        """Count what a unit that was just written takes."""
        if self._bytes is not None:
            self._bytes += folder_bytes(unit)


def folder_bytes(folder: Location) -> int:
    """Return the size of the files in a folder, in bytes; 0 where there is none."""
    if isinstance(folder, ObjectPath):
        return sum(folder.walk().values())
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def size_of(text: str) -> int:
    """Return a size such as `20GB`, `512 MiB` or `1000000` in bytes; raises UsageError for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip())
    factor = (_UNITS | _UNITS_BINARY).get(match[2].upper()) if match else None
    if match is None or factor is None or float(match[1]) * factor < 1:
        raise UsageError(f"{text!r} is no size; write one such as 20GB, 512MiB or 1000000")
    return int(float(match[1]) * factor)
