"""The run or trace that the explorer looks at; a unit is opened when it is first shown."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final

from probe.errors import UsageError
from probe.storage.trace_store import Run, Trace
from probe.storage.trace_store import open as open_trace
from probe.visible import visible

_MOST_OPEN: Final = 8


class Opened:
    """One run or trace. Only its own units can be asked for, whatever an address says."""

    def __init__(self, path: Path | str) -> None:
        """Open a folder; raises as `probe.open` does where it holds neither a run nor a trace."""
        self.source: Run | Trace = open_trace(path)
        """What was opened."""
        self.name = visible(Path(path).resolve().name)
        """The folder's name."""
        self._traces: OrderedDict[str, Trace] = OrderedDict()
        self._lock = threading.Lock()

    def units(self) -> dict[str, str]:
        """Return each unit with what it is in words: its sample and its condition."""
        if isinstance(self.source, Trace):
            return {self.source.unit: _words(self.source.sample.name, self.source.condition, self.source.stage)}
        words = {}
        for unit, record in self.source.units.items():
            words[unit] = _words(*(str(record.get(key) or "") for key in ("sample", "condition", "stage")))
            words[unit] += " · failed" if record.get("failed") else ""
        return words

    def trace(self, unit: str) -> Trace:
        """Return a unit, the first for an empty name; raises UsageError where there is none of that name."""
        units = [self.source.unit] if isinstance(self.source, Trace) else list(self.source.units)
        if not units:
            raise UsageError(f"{self.name} holds no unit yet: nothing was captured")
        unit = unit or units[0]
        if unit not in units:
            raise UsageError(f"there is no unit {unit!r} in {self.name}")
        if isinstance(self.source, Trace):
            return self.source
        with self._lock:
            if unit not in self._traces:
                self._traces[unit] = self.source.trace(unit)
            self._traces.move_to_end(unit)
            while len(self._traces) > _MOST_OPEN:
                self._traces.popitem(last=False)
            return self._traces[unit]


def _words(sample: str, condition: str, stage: str) -> str:
    return " · ".join(visible(part) for part in (sample, condition, stage) if part)
