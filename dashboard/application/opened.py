"""The runs and traces that the explorer looks at; a unit is opened when it is first shown."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from probe.errors import ProbeError, StoreUnreachable, UsageError
from probe.finding import Finding
from probe.storage.commit_segments import SEGMENTS
from probe.storage.object_path import Location, ObjectPath, location
from probe.storage.trace_store import Run, Trace
from probe.storage.trace_store import open as open_trace
from probe.storage.unit_answer import Answers, UnitAnswer
from probe.telling.finding_keys import finding_keys
from probe.telling.stages import StageProgress, is_running, stages_of
from probe.visible import visible

_MOST_OPEN: Final = 8
_RECORDS: Final = ("run.json", "commits.jsonl", "findings.json")


class OpenedRun:
    """One run or trace. Only its own units can be asked for, whatever an address says."""

    def __init__(self, path: Location | str, name: str = "") -> None:
        """Open a folder; raises as `probe.open` does where it holds neither a run nor a trace."""
        self.path = location(path)
        """The folder, as it was named."""
        self.name = name or visible(self.path.resolve().name)
        """What it is called here."""
        self._stamp = self._changed()
        self.source: Run | Trace = open_trace(path)
        """What was opened."""
        self.version = 0
        """How often it was found to have grown."""
        self.trouble = ""
        """Why what stands there now cannot be read; what was read before is shown until it can."""
        self._traces: OrderedDict[str, Trace] = OrderedDict()
        self._findings: list[Finding] | None = None
        self._answers = Answers()
        self._lock = threading.Lock()

    @property
    def record(self) -> Mapping[str, Any]:
        """What `run.json` says; {} for a trace of its own."""
        return {} if isinstance(self.source, Trace) else self.source.record

    @property
    def running(self) -> bool:
        """Whether the run is still being written."""
        return isinstance(self.source, Run) and is_running(self.source)

    @property
    def stages(self) -> list[StageProgress]:
        """How far each stage of the casebook has come; [] for a trace of its own."""
        return stages_of(self.source) if isinstance(self.source, Run) else []

    @property
    def progress(self) -> str:
        """How far the run has come, in a few words."""
        stages = self.stages
        here = [stage for stage in stages if stage.num_planned is not None]
        if not here:
            return f"{len(self.unit_records()):,} units so far"
        at = stages.index(here[-1]) + 1
        return f"stage {at} of {len(stages)} ({visible(str(here[-1]))})"

    def answers(self) -> list[UnitAnswer]:
        """Return what every unit was asked and answered, in the order of commits; [] for a trace of its own.

        Each unit is read once, whatever is asked later. One that is not what was written says so (`problem`).
        """
        if isinstance(self.source, Trace):
            return []
        with self._lock:
            return list(self._answers.of(self.source).values())

    def findings(self) -> list[Finding]:
        """Return what was found, in the casebook's order; raises StoreCorrupt where it is not what was written."""
        if isinstance(self.source, Trace):
            return []
        if self._findings is None:
            self._findings = self.source.findings()
        return self._findings

    def finding(self, name: str) -> Finding:
        """Return one finding by its key (`keys`); raises UsageError naming those that there are."""
        found = self.keys()
        if name not in found:
            raise UsageError(f"{self.name} has no finding {name!r}; it has {', '.join(found) or 'none yet'}")
        return found[name]

    def keys(self) -> dict[str, Finding]:
        """Return the findings by a key of their own: the casebook's name, else the analysis', numbered where twice."""
        return finding_keys(self.findings())

    def unit_records(self) -> Mapping[str, Mapping[str, Any]]:
        """Return what each unit is (`stage`, `condition`, `role`, `sample`, `failed`), by unit."""
        if isinstance(self.source, Trace):
            trace = self.source
            about = {"stage": trace.stage, "condition": trace.condition, "sample": trace.sample.name}
            return {trace.unit: about | {"role": trace.facts.get("role"), "failed": None}}
        return self.source.units

    def units(self) -> dict[str, str]:
        """Return each unit with what it is in words: its sample and its condition."""
        words = {}
        for unit, record in self.unit_records().items():
            said = (str(record.get(key) or "") for key in ("sample", "condition", "stage"))
            words[unit] = " · ".join(visible(part) for part in said if part)
            words[unit] += " · failed" if record.get("failed") else ""
        return words

    def trace(self, unit: str) -> Trace:
        """Return a unit, the first for an empty name; raises UsageError where there is none of that name."""
        units = self.unit_records()
        if not units:
            raise UsageError(f"{self.name} holds no unit yet: nothing was captured")
        unit = unit or next(iter(units))
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

    def refresh(self) -> bool:
        """Look whether more was written since, and read it; returns whether there was.

        What cannot be read is said in `trouble`, and what was read before stays.
        """
        stamp = self._changed()
        if isinstance(self.source, Trace) or stamp == self._stamp:
            return False
        with self._lock:
            self._stamp = stamp
            self.version += 1
            try:
                source = open_trace(self.path)
            except ProbeError as error:
                self.trouble = visible(str(error))
                return True
            before, self.source, self._findings, self.trouble = self.unit_records(), source, None, ""
            after = self.unit_records()
            for unit in [unit for unit in self._traces if after.get(unit) != before.get(unit)]:
                del self._traces[unit]
        return True

    def _changed(self) -> tuple[tuple[int | str, int], ...]:
        """Return what tells that a file is another one: its time and its size."""
        if isinstance(self.path, ObjectPath):
            # What was committed since is an object of its own.
            try:
                commits = len(list((self.path / SEGMENTS).iterdir()))
                return (*((self.path / name).stamp() for name in _RECORDS), ("", commits))
            except StoreUnreachable as error:
                return ((str(error), -1),)
        stamps: list[tuple[int | str, int]] = []
        for name in _RECORDS:
            try:
                about = (self.path / name).stat()
                stamps.append((about.st_mtime_ns, about.st_size))
            except OSError:
                stamps.append((0, -1))
        return tuple(stamps)


class Opened:
    """Everything that one explorer looks at, by name. A folder that cannot be opened stays, with the reason."""

    def __init__(self, paths: Sequence[Location | str]) -> None:
        """Open folders; raises as `probe.open` does where none of them can be opened."""
        self._runs: dict[str, OpenedRun] = {}
        self.broken: dict[str, str] = {}
        """Why a folder is not shown, by its name."""
        self._adding = threading.Lock()
        self._added = 0
        errors: list[ProbeError] = []
        for path in paths:
            name = self._free_name(visible(location(path).resolve().name) or "run")
            try:
                self._runs[name] = OpenedRun(path, name)
            except ProbeError as error:
                self.broken[name] = visible(str(error))
                errors.append(error)
        if not self._runs:
            raise errors[0] if errors else UsageError("name a run to look at")

    def add(self, path: Location, name: str) -> OpenedRun:
        """Return the run of a folder, opened under a name like this if it was not; raises as `probe.open` does."""
        with self._adding:
            for run in self._runs.values():
                if run.path == path:
                    run.refresh()
                    return run
            name = self._free_name(name)
            self._runs[name] = OpenedRun(path, name)
            self._added += 1
            return self._runs[name]

    @property
    def names(self) -> list[str]:
        """What was opened, by name, in the order given; the broken ones last."""
        return [*self._runs, *self.broken]

    @property
    def title(self) -> str:
        """What is looked at, in a few words."""
        first, *others = self.names
        return f"{first} and {len(others)} more" if others else first

    @property
    def running(self) -> bool:
        """Whether something is still being written."""
        return any(run.running for run in self.runs())

    @property
    def version(self) -> int:
        """How often something was found to have changed."""
        return self._added + sum(run.version for run in self.runs())

    def run(self, name: str = "") -> OpenedRun:
        """Return one run, the first for an empty name; raises UsageError with the reason where it cannot be shown."""
        if name in self.broken:
            others = f". There are also {', '.join(self._runs)}" if self._runs else ""
            raise UsageError(f"{name} cannot be shown: {self.broken[name]}{others}")
        name = name or next(iter(self._runs))
        if name not in self._runs:
            raise UsageError(f"no run {name!r} was opened; there are {', '.join(self.names)}")
        return self._runs[name]

    def runs(self) -> list[OpenedRun]:
        """Return every run that could be opened."""
        return list(self._runs.values())

    def refresh(self) -> bool:
        """Look at every run; returns whether any has grown, or cannot be read any more."""
        grown = [run.refresh() for run in self.runs()]
        return any(grown)

    def _free_name(self, name: str) -> str:
        free, count = name, 1
        while free in self._runs or free in self.broken:
            count += 1
            free = f"{name}-{count}"
        return free
