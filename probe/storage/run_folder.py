"""A run: a folder of traces with the casebook that made them, and what was found."""

from __future__ import annotations

import errno
import functools
import html
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from probe.errors import NotAvailable, RunFolderInUse, StoreCorrupt, UsageError
from probe.storage.checking import check_run
from probe.storage.commits import Commits
from probe.storage.damage import Damage
from probe.storage.durable import read_json
from probe.storage.hold import cannot_hold
from probe.storage.manifest import RECORD_FORMAT, check_format
from probe.storage.object_path import Location, location
from probe.storage.seal import intact, read_sealed
from probe.storage.unit_trace import Trace
from probe.visible import visible

if TYPE_CHECKING:
    from probe.finding import Finding
    from probe.storage.inline_view import InlineView


class UnreadableRecord(StoreCorrupt):
    """A `run.json` of which nobody can say whether it is a run's; its folder is left alone."""


class Run:
    """A run folder, read. What is committed when it is opened is what it shows."""

    def __init__(self, path: Location | str) -> None:
        """Open a run folder, or a run in object storage.

        Raises NotAvailable where it has no `run.json`, StoreCorrupt where that or the commit record is not what was
        written, or a newer version wrote it.
        """
        self.path = location(path)
        """The folder, or where it lies in object storage."""
        record = read_sealed(self.path / "run.json")
        check_format(record.get("format"), str(self.path / "run.json"), RECORD_FORMAT)
        self.record: dict[str, Any] = record
        """What `run.json` says: the casebook, the provenance, what each stage resolved."""
        self._commits = Commits(self.path / "commits.jsonl")

    @functools.cached_property
    def units(self) -> dict[str, Mapping[str, Any]]:
        """The record of each committed unit (`unit`, `stage`, `condition`, `role`, `sample`, `failed`), by unit.

        In the order of the casebook: stage by stage, condition by condition, sample by sample. Where a record does not
        say its place, as an earlier version wrote it, in the order in which they were captured.
        """
        units = self._commits.units
        places = {unit: _place(record) for unit, record in units.items()}
        if all(places.values()):
            return dict(sorted(units.items(), key=lambda each: places[each[0]]))
        return dict(units)

    def traces(
        self, condition: str | None = None, stage: str | None = None, role: str | None = None
    ) -> Iterator[Trace]:
        """Yield the traces, in the order of `units`, of one condition, stage and role or of all."""
        wanted = {"condition": condition, "stage": stage, "role": role}
        for unit, record in self.units.items():
            if all(value is None or record.get(key) == value for key, value in wanted.items()):
                yield self.trace(unit)

    def select(
        self,
        *,
        samples: Collection[str] | None = None,
        conditions: Collection[str] | None = None,
        stages: Collection[str] | None = None,
    ) -> list[Trace]:
        """Return the traces of these samples, conditions and stages, by name; analyses take them as they take a run.

        Raises UsageError naming what there is, for a name that no unit of the run has.
        """
        wanted = {"sample": samples, "condition": conditions, "stage": stages}
        for key, names in wanted.items():
            if isinstance(names, str):
                raise UsageError(f"{key}s are a collection of names, not {names!r}")
            there = sorted({str(record.get(key)) for record in self.units.values()})
            if missing := sorted(set(names or ()) - set(there)):
                raise UsageError(f"no unit has the {key} {missing[0]!r}; there are {', '.join(there)}")
        return [
            self.trace(unit)
            for unit, record in self.units.items()
            if all(names is None or record.get(key) in names for key, names in wanted.items())
        ]

    def trace(self, unit: str) -> Trace:
        """Return one trace by its unit; raises KeyError where there is none."""
        return Trace.open(self.path / "trace.zarr" / unit, self.units[unit])

    def findings(self) -> list[Finding]:
        """Return what was found; empty before the analyses ran."""
        from pydantic import ValidationError

        from probe.finding import FORMAT, Finding

        path = self.path / "findings.json"
        if not path.exists():
            return []
        value = read_json(path)
        for each in value if isinstance(value, list) else ():
            if isinstance(each, dict) and "format" in each:
                check_format(each["format"], str(path), FORMAT)
        try:
            return [Finding.from_json(finding) for finding in value]
        except (TypeError, ValueError) as error:
            said = str(error)
            if isinstance(error, ValidationError):
                first = error.errors(include_url=False, include_input=False)[0]
                said = ": ".join([".".join(map(str, first["loc"])), first["msg"]])
            raise StoreCorrupt(f"{path} does not hold findings: {said}") from error

    def view(self, page: str = "overview", *, height: int = 720) -> InlineView:
        """Show the explorer on this run: in a frame below a notebook's cell, elsewhere as a link.

        This process serves it, to this machine alone, until it ends. `height` is the frame's, in pixels. Raises
        UsageError naming the pages that there are.
        """
        from probe.storage.inline_view import inline_view

        return inline_view(self, page, {}, visible(f"{self.path.resolve().name}, {page}"), height)

    def verify(self) -> list[Damage]:
        """Read every byte of the run and return what is not as it was written; empty where all is well."""
        return check_run(self.path)

    def __len__(self) -> int:
        return len(self.units)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {len(self)} traces)"

    def _repr_html_(self) -> str:
        status = _text(str(self.record.get("status", "")))
        counts = Counter((str(r.get("stage") or ""), str(r.get("condition") or "")) for r in self.units.values())
        rows = "".join(
            f"<tr><td style='text-align:left'>{_text(stage)}</td>"
            f"<td style='text-align:left'>{_text(condition)}</td><td>{number}</td></tr>"
            for (stage, condition), number in counts.items()
        )
        claims = "".join(f"<li>{_text(finding.claim)}</li>" for finding in self.findings())
        return (
            f"<p><b>Run</b> {_text(str(self.path))} · {len(self)} traces{' · ' + status if status else ''}</p>"
            f"<ul>{claims}</ul><table><tr><th>stage</th><th>condition</th><th>traces</th></tr>{rows}</table>"
        )


def _place(record: Mapping[str, Any]) -> list[int]:
    """Return where a unit stands in its run; [] where its record does not say."""
    place = record.get("place")
    return place if isinstance(place, list) and all(type(each) is int for each in place) else []


def read_record(path: Location | str) -> dict[str, Any] | None:
    """Return what the `run.json` in a folder says, None where there is none.

    Raises UnreadableRecord, a StoreCorrupt, where it is not a JSON object or a newer version wrote it, RunFolderInUse
    where something other than a run is written in it, UsageError where there can be no such folder.
    """
    file = location(path) / "run.json"
    try:
        record = read_json(file)
    except NotAvailable:
        return None
    except ValueError as error:
        raise cannot_hold(path, error) from error
    except StoreCorrupt as error:
        why = error.__cause__
        if isinstance(why, OSError) and why.errno in (errno.ENOTDIR, errno.ENAMETOOLONG):
            raise cannot_hold(path, why) from why
        raise UnreadableRecord(f"{error}; nothing was touched: {_ELSEWHERE}") from error
    if not isinstance(record, dict):
        raise UnreadableRecord(f"{file} is not the record of a run; nothing was touched: {_ELSEWHERE}")
    if not intact(record):
        raise UnreadableRecord(
            f"{file} was altered: its seal does not hold; nothing was touched: `probe verify {path} --repair` takes "
            f"its copy, or {_ELSEWHERE}"
        )
    if type(record.get("format")) is not int or not isinstance(record.get("identity"), dict):
        raise RunFolderInUse(f"{path} holds no run: its run.json is not the record of one; {_ELSEWHERE}")
    try:
        check_format(record["format"], str(file), RECORD_FORMAT)
    except StoreCorrupt as error:
        raise UnreadableRecord(str(error)) from error
    return record


_ELSEWHERE = "move that file away, or give another folder with --out"


def _text(text: str) -> str:
    return html.escape(visible(text))
