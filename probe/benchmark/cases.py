"""Every case that a benchmark measures, in the order of its tables. A new one is a class of its own and a line here."""

from __future__ import annotations

from probe.benchmark.case import Case
from probe.benchmark.layer_cases import Eager, ScanAfterFlash, ScanAlone, Sdpa
from probe.benchmark.model_cases import Prefill, PrefillInChunks, Traced

CASES: tuple[Case, ...] = (
    Sdpa(),
    Eager(),
    ScanAfterFlash(),
    ScanAlone(),
    Prefill(),
    PrefillInChunks(),
    Traced(),
)


def case_of(name: str) -> Case:
    """Return a case by name; raises KeyError where there is none."""
    return {case.name: case for case in CASES}[name]
