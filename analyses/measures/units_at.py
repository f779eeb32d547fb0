"""Which units stand for one condition at one length, where reading them all would take too long."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from probe.storage.trace_store import Run, Trace
from probe.storage.unit_answer import UnitAnswer, answer_of, answers_of

MOST_UNITS: Final = 64
"""Units that are read for one condition and length."""


@dataclass(frozen=True)
class Units:
    """Some units of one condition and length."""

    traces: tuple[Trace, ...]
    """Those that hold what was asked for, each opened."""
    answers: tuple[UnitAnswer, ...]
    """What was answered in each, in the same order."""
    there: int
    """How many units there are; fewer are read where these are too many, as many at each depth."""

    @property
    def words(self) -> str:
        """How many prompts were read, as a caption says it."""
        read = len(self.traces)
        of = "" if read == self.there else f" of {self.there}"
        return f"{read}{of} prompt{'' if self.there == 1 else 's'}"


def known_answers(run: Run | Trace, answers: Iterable[UnitAnswer] | None = None) -> list[UnitAnswer]:
    """Return the answers of a run, those read already where they are given; of a single trace its one."""
    if not isinstance(run, Trace):
        return answers_of(run if answers is None else answers)
    return [answer_of(run)]


def units_at(
    run: Run | Trace,
    condition: str,
    length: int,
    holding: Iterable[str],
    *,
    answers: Iterable[UnitAnswer] | None = None,
    most: int = MOST_UNITS,
) -> Units:
    """Return units of a condition and length that hold some arrays, `most` of them; a prompt read again counts once.

    Where there are more, those of each depth take turns, in the order in which they were captured.
    """
    names = set(holding)
    seen = set()
    by_depth: dict[float | None, list[UnitAnswer]] = {}
    for each in known_answers(run, answers):
        key = (each.sample, each.prompt, each.draw)
        if each.condition == condition and each.length == length and each.captured and not each.problem:
            if key not in seen:
                by_depth.setdefault(each.depth, []).append(each)
            seen.add(key)
    turns = [each for i in range(max(map(len, by_depth.values()), default=0)) for each in _at(by_depth, i)]
    found: list[tuple[Trace, UnitAnswer]] = []
    for each in turns[:most]:
        trace = run if isinstance(run, Trace) else run.trace(each.unit)
        if names <= set(trace.stored_names()):
            found.append((trace, each))
    return Units(tuple(trace for trace, _ in found), tuple(each for _, each in found), len(turns))


def _at(groups: dict[float | None, list[UnitAnswer]], turn: int) -> list[UnitAnswer]:
    return [some[turn] for some in groups.values() if turn < len(some)]
