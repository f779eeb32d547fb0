"""Up to what length each of several tasks is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from probe.analyses.figures.lengths import Rate
from probe.selection import fact, length

if TYPE_CHECKING:
    from probe.outcome import Outcome
    from probe.storage.trace_store import Trace

Rates = Mapping[int, Rate]


def rates_by_length(cases: Sequence[tuple[Trace, Outcome]]) -> dict[int, Rate]:
    """Return the rate of right answers at each length, lengths in order."""
    found: dict[int, Rate] = {}
    for trace, outcome in cases:
        at = length(trace)
        found[at] = found.get(at, Rate(0, 0)) + Rate(int(bool(outcome.correct)), 1)
    return dict(sorted(found.items()))


def task(trace: Trace) -> str:
    """Return what a trace was asked: its fact `task`, else its workload, else the beginning of its sample's name."""
    named = fact(trace, "task") or fact(trace, "workload")
    return str(named) if named else trace.sample.name.split("-")[0]


def rates_by_task(cases: Sequence[tuple[Trace, Outcome]]) -> dict[str, dict[int, Rate]]:
    """Return the rates of each task, tasks in order; one task alone gives one entry."""
    tasks = sorted({task(trace) for trace, _ in cases})
    return {name: rates_by_length([(t, o) for t, o in cases if task(t) == name]) for name in tasks}


def mean_over_tasks(rates: Mapping[str, Rates]) -> dict[int, float]:
    """Return the mean over tasks of the share of right answers, at the lengths that every task was asked at."""
    shared = sorted(set.intersection(*(set(each) for each in rates.values()))) if rates else []
    return {at: sum(each[at].share for each in rates.values()) / len(rates) for at in shared}
