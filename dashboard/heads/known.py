"""The scores of the heads of what is looked at, each unit's read once whatever the page."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from typing import Final

from probe.analyses.measures.scores_of_heads import ScoresOfHeads, gathered
from probe.dashboard.application.opened import OpenedRun
from probe.storage.trace_store import Trace

_MOST: Final = 8
_KEPT: Final[weakref.WeakKeyDictionary[OpenedRun, OrderedDict[tuple[int, str], ScoresOfHeads]]] = (
    weakref.WeakKeyDictionary()
)
_LOCK: Final = threading.Lock()


def heads_of(run: OpenedRun, unit: str) -> ScoresOfHeads:
    """Return the scores of a run and of one of its units, the first for an empty name; raises as `run.trace` does.

    Those of the last few units are kept.
    """
    trace = run.trace(unit) if run.unit_records() else None
    key = (run.version, "" if trace is None else trace.unit)
    with _LOCK:
        kept = _KEPT.setdefault(run, OrderedDict())
        if key not in kept:
            kept[key] = gathered(trace, run.keys(), run.record, run.answers)
        kept.move_to_end(key)
        while len(kept) > _MOST:
            kept.popitem(last=False)
        return kept[key]


def run_and_unit(run: OpenedRun, trace: Trace) -> str:
    """Return the arguments of `scores_of_heads` in Python: what opens the run, and its unit."""
    opened = f"probe.open({str(run.path)!r})"
    return opened if isinstance(run.source, Trace) else f"{opened}, {trace.unit!r}"


def opened_unit(run: OpenedRun, trace: Trace) -> str:
    """Return what opens the unit in Python."""
    opened = f"probe.open({str(run.path)!r})"
    return opened if isinstance(run.source, Trace) else f"{opened}.trace({trace.unit!r})"
