"""A run in brief: what was found, what failed, and where the files lie. The command line prints it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.reporting.certainty import certainty
from probe.reporting.headline import headline

if TYPE_CHECKING:
    from probe.storage.trace_store import Run


@dataclasses.dataclass(frozen=True)
class Failure:
    """A unit that gave no result."""

    unit: str
    """Name of the unit, or of its sample and condition."""
    reason: str
    """Why, in one sentence."""


def failures(run: Run) -> list[Failure]:
    """Return the units that failed: what the run's record says of its last try, and what is committed as failed."""
    found = {str(entry["unit"]): str(entry["why"]) for entry in run.record.get("failed", [])}
    for unit, about in run.units.items():
        if about.get("failed"):
            found.setdefault(unit, str(about["failed"]))
    return [Failure(unit, reason) for unit, reason in found.items()]


def summary(run: Run) -> dict[str, Any]:
    """Return the run in brief, as JSON values."""
    findings = run.findings()
    said = headline(findings)
    files = {name: Path(run.path) / name for name in ("report.html", "findings.json", "trace.zarr", "run.json")}
    return {
        "format": 1,
        "casebook": named(run.record.get("casebook")),
        "model": model_of(run.record),
        "status": run.record.get("status"),
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
