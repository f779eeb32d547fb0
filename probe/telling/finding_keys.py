"""What each finding of a run is called, so that an address, a score or a link can name it."""

from __future__ import annotations

from collections.abc import Sequence

from probe.finding import Finding


def finding_keys(findings: Sequence[Finding]) -> dict[str, Finding]:
    """Return the findings by a key of their own: the casebook's name, else the analysis', numbered where twice."""
    found: dict[str, Finding] = {}
    for finding in findings:
        name, count = finding.name or finding.analysis, 1
        key = name
        while key in found:
            count += 1
            key = f"{name}-{count}"
        found[key] = finding
    return found
