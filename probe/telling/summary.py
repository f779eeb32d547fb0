"""A run in brief: what was found, what failed, and where the files lie. The command line prints it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from probe.cost import read_cost
from probe.storage.record_form import check_record
from probe.telling.certainty import certainty
from probe.telling.headline import headline
from probe.telling.stages import command_of

if TYPE_CHECKING:
    from probe.storage.trace_store import Run


@dataclasses.dataclass(frozen=True)
class Failure:
    """A unit that gave no result."""

    unit: str
    """Name of the unit, or of its sample and condition."""
    reason: str
    """Why, in one sentence."""
    kept: bool = False
    """Whether the failure is what the model gives, such as NaN, and stays on record: it is not tried again."""


def failures(run: Run) -> list[Failure]:
    """Return the units that failed: what the run's record says of its last try, and what is committed as failed."""
    found = {str(entry["unit"]): str(entry["why"]) for entry in run.record.get("failed", [])}
    kept = {unit: str(about["failed"]) for unit, about in run.units.items() if about.get("failed")}
    return [Failure(unit, reason, unit in kept) for unit, reason in (kept | found).items()]


def in_groups(failed: Iterable[Failure]) -> list[str]:
    """Return a line for each reason: the unit where it is one, else how many and which was the first.

    Reasons that differ in numbers alone, such as a layer or a position, are one; the first one's is given.
    """
    groups: dict[str, list[Failure]] = {}
    for failure in failed:
        groups.setdefault(re.sub(r"\d+", "0", failure.reason), []).append(failure)
    return [
        f"{group[0].unit}: {group[0].reason}"
        if len(group) == 1
        else f"{len(group)} units: {group[0].reason} (first: {group[0].unit})"
        for group in sorted(groups.values(), key=len, reverse=True)
    ]


def expected_heading(expected: Mapping[str, Any]) -> str:
    """Return the sentence that stands over a run's expectations: whose they are, and what is different here."""
    met = sum(bool(each["met"]) for each in expected["results"])
    said = f"{met} of {len(expected['results'])} expectations of {expected['of']} met"
    if expected["differs_in"]:
        said += f"; this run differs in {', '.join(expected['differs_in'])} from what they were written for"
    return said


def unfinished(record: Mapping[str, Any]) -> bool:
    """Return whether a run has not ended: it was stopped or killed, or another process is at it."""
    return record.get("status") in ("running", "stopped")


def skipped(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the stages that were not played, each with the reason."""
    stages = record.get("stages")
    if not isinstance(stages, Mapping):
        return []
    return [(str(n), str(s["skipped"])) for n, s in stages.items() if isinstance(s, Mapping) and s.get("skipped")]


def summary(run: Run) -> dict[str, Any]:
    """Return the run in brief, as JSON values; raises StoreCorrupt where its record is not what a run writes."""
    check_record(run.record, f"{run.path}/run.json")
    findings = run.findings()
    said = headline(findings)
    files = {name: run.path / name for name in ("report.html", "findings.json", "trace.zarr", "run.json")}
    return {
        "format": 1,
        "casebook": named(run.record.get("casebook")),
        "model": model_of(run.record),
        "status": run.record.get("status"),
        "units": len(run.units),
        "command": command_of(run.record) or None,
        "diagnosis": said.claims,
        "not_settled": said.open_questions,
        "findings": [
            {
                **finding.to_json(),
                "figures": [figure.name for figure in finding.figures],
                "certainty": certainty(finding),
            }
            for finding in findings
        ],
        "expected": run.record.get("expected"),
        "skipped": [{"stage": stage, "reason": reason} for stage, reason in skipped(run.record)],
        "cost": None if (cost := read_cost(run.path)) is None else dataclasses.asdict(cost),
        "failed": [dataclasses.asdict(failure) for failure in failures(run)],
        "files": {name: str(path) for name, path in files.items() if path.exists()},
    }


def named(casebook: object) -> str:
    """Return a casebook's name from what a run's record says of it: its name, or all of it."""
    if isinstance(casebook, Mapping):
        return str(casebook.get("name", "?"))
    return str(casebook or "?")


def model_of(record: Mapping[str, Any]) -> str:
    """Return the model's name from a run's record."""
    provenance = record.get("provenance")
    if isinstance(provenance, Mapping) and provenance.get("model"):
        return str(provenance["model"])
    casebook = record.get("casebook")
    if isinstance(casebook, Mapping) and casebook.get("model"):
        return str(casebook["model"])
    return "?"
