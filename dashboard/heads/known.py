"""The scores of the heads of what is looked at, each unit's read once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from probe.analyses.measures.scores_of_heads import ScoresOfHeads, gathered
from probe.dashboard.application.opened import OpenedRun
from probe.storage.trace_store import Trace

_MOST: Final = 8


class HeadsOfRuns:
    """Keeps the scores of the last few units that were shown."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int, str], ScoresOfHeads] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, run: OpenedRun, unit: str) -> ScoresOfHeads:
        """Return the scores of a run and of one of its units, the first for an empty name; raises as `trace` does."""
        trace = run.trace(unit) if run.unit_records() else None
        key = (run.name, run.version, "" if trace is None else trace.unit)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = gathered(trace, run.keys(), run.record, run.answers)
            self._kept.move_to_end(key)
            while len(self._kept) > _MOST:
                self._kept.popitem(last=False)
            return self._kept[key]

    @staticmethod
    def expressions(run: OpenedRun, trace: Trace) -> tuple[str, ...]:
        """Return the arguments of `scores_of_heads` in Python: what opens the run, and its unit."""
        opened = f"probe.open({str(run.path)!r})"
        return (opened,) if isinstance(run.source, Trace) else (opened, repr(trace.unit))

    @staticmethod
    def unit_expression(run: OpenedRun, trace: Trace) -> str:
        """Return what opens the unit in Python."""
        opened = f"probe.open({str(run.path)!r})"
        return opened if isinstance(run.source, Trace) else f"{opened}.trace({trace.unit!r})"
