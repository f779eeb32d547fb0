"""Whether other programs took the cores that a measurement meant to have. Times of a busy machine are not its own."""

from __future__ import annotations

import os
import time
from pathlib import Path

_FIELDS_AT_WORK = (1, 2, 3, 6, 7, 8)
"""Of a line of /proc/stat: user, nice, system, interrupts, soft interrupts, and what a hypervisor gave to others."""


class Contention:
    """Counts, from its making on, the cores that others kept busy; knows nothing where there is no /proc/stat."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._began = self._now()

    def busy_cores(self) -> float | None:
        """Return how many cores, on average, worked for other processes than this one and its children."""
        now = self._now()
        if now is None or self._began is None:
            return None
        at_work, own, clock = (after - before for after, before in zip(now, self._began, strict=True))
        return max(0.0, (at_work - own) / clock) if clock > 0 else None

    def _now(self) -> tuple[float, float, float] | None:
        try:
            line = self._stat.read_text().splitlines()[0].split()
        except (OSError, IndexError):
            return None
        ticks = sum(int(line[field]) for field in _FIELDS_AT_WORK)
        return ticks / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4]), time.monotonic()


def all_cores() -> int:
    """Return the number of cores of the machine, those that this process may not use included."""
    return os.cpu_count() or 1
