"""Reading what was captured: `probe.open` and what it returns. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable

from probe.errors import NotAvailable, StoreCorrupt, UsageError
from probe.storage.commits import Commits
from probe.storage.durable import read_json
from probe.storage.manifest import RECORD_FORMAT, check_format
from probe.storage.object_path import Location, location
from probe.storage.run_folder import Run
from probe.storage.unit_trace import Trace

__all__ = ["Run", "Trace", "as_traces", "open"]


def open(path: Location | str) -> Trace | Run:
    """Open a run folder, a trace that was saved, or one unit's folder within a run, on this machine or at a URL.

    Raises NotAvailable where nothing is there, UsageError where something else is, and StoreCorrupt where it is not
    what was written or a newer version wrote it.
    """
    place = location(path)
    if not place.exists():
        raise NotAvailable(f"{place} is not there")
    if not place.is_dir():
        raise UsageError(f"{place} is a file; a run and a trace are folders")
    if (place / "run.json").exists():
        return Run(place)
    if (place / "trace.json").exists():
        return _saved_trace(place)
    if (place.parent / "commits.jsonl").exists() and place.name == "trace.zarr":
        return open(place.parent)
    if (place.parent.parent / "commits.jsonl").exists() and place.parent.name == "trace.zarr":
        commits = Commits(place.parent.parent / "commits.jsonl")
        if place.name not in commits.units:
            raise StoreCorrupt(f"{place} was never committed: a run that stopped left it half written")
        return Trace.open(place, commits.units[place.name])
    if (place / "commits.jsonl").exists():
        raise StoreCorrupt(f"{place} holds the units of a run, but its run.json is missing")
    raise UsageError(f"{place} is neither a run nor a trace: it has no run.json and no trace.json")


def as_traces(source: Trace | Run | Iterable[Trace]) -> list[Trace]:
    """Return the traces of a run, of some traces, or of a single one."""
    if isinstance(source, Trace):
        return [source]
    traces = list(source.traces() if isinstance(source, Run) else source)
    for trace in traces:
        if not isinstance(trace, Trace):
            raise UsageError(f"expected a trace, a run or traces, got {type(trace).__name__}")
    return traces


def _saved_trace(folder: Location) -> Trace:
    value = read_json(folder / "trace.json")
    name = str(folder / "trace.json")
    if not isinstance(value, dict):
        raise StoreCorrupt(f"{name} does not describe a trace")
    check_format(value.get("format"), name, RECORD_FORMAT)
    units = Commits(folder / "commits.jsonl").units
    if value.get("unit") not in units:
        raise StoreCorrupt(f"{folder}: the trace {str(value.get('unit'))[:200]!r} is not in commits.jsonl")
    return Trace.open(folder / "trace.zarr" / value["unit"], units[value["unit"]])
