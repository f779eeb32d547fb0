"""Which findings a reader would not have guessed: the order in which the explorer shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

from probe.finding import Finding, Interval
from probe.stage import labelled

ORDER: Final = (
    "Most surprising first, which is this toolkit's own order: what the data settle before what they do not; in each "
    "what the casebook expected otherwise, then what is ruled out though no expectation said so, then the rest; and "
    "among alike the larger effect against its control, in standard errors."
)
"""How `by_surprise` sorts, in words."""

NUM_SIGMAS_MOST: Final = 40.0
"""Effects beyond this many standard errors count alike: what is left is the order of the casebook."""


@dataclass(frozen=True)
class Told:
    """A finding with what a reader wants to know before it."""

    finding: Finding
    index: int
    """Its place in the casebook's order."""
    expected: tuple[Mapping[str, Any], ...] = ()
    """What became of each expectation of it: `expected`, `met`, `found`."""

    @property
    def settled(self) -> bool:
        """Whether there is an answer: a value, and a verdict that is not inconclusive."""
        return self.finding.verdict != "inconclusive" and self.finding.measured.value is not None

    @property
    def as_expected(self) -> bool | None:
        """Whether every expectation of it was met; None where there is none."""
        return all(bool(each.get("met")) for each in self.expected) if self.expected else None


def by_surprise(findings: Sequence[Finding], record: Mapping[str, Any]) -> list[Told]:
    """Return findings, most surprising first (`ORDER`); `record` is what `run.json` says of the run."""
    expected = expected_of(findings, record)
    told = [Told(finding, i, tuple(expected.get(i, ()))) for i, finding in enumerate(findings)]
    return sorted(told, key=_rank)


def _rank(told: Told) -> tuple[bool, int, float, int]:
    against = 2
    if told.as_expected is False:
        against = 0
    elif told.as_expected is None and told.finding.verdict == "refuted":
        against = 1
    sigmas = effect_in_standard_errors(told.finding)
    return not told.settled, against, -min(sigmas or 0.0, NUM_SIGMAS_MOST), told.index


def effect_in_standard_errors(finding: Finding) -> float | None:
    """Return how far a finding's value lies from its control, in standard errors; None where that cannot be told.

    A standard error is the half width of an interval over its normal quantile. Taken from the comparison's difference;
    else from the value less its control, whose errors add in squares; else from the p-value of the test, as the normal
    deviate of the same two-sided p. This toolkit's own, for sorting alone: an interval need not be normal.
    """
    comparison, measured, control = finding.comparison, finding.measured, finding.control
    if comparison is not None and comparison.difference is not None:
        error = _standard_error(comparison.interval)
        if error:
            return abs(comparison.difference) / error
    if control is not None and control.unit == measured.unit:
        error = math.hypot(_standard_error(measured.interval), _standard_error(control.interval))
        if error and measured.value is not None and control.value is not None:
            return abs(measured.value - control.value) / error
    if comparison is not None and comparison.p_value is not None:
        return NormalDist().inv_cdf(1 - max(comparison.p_value, 1e-15) / 2)
    return None


def expected_of(findings: Sequence[Finding], record: Mapping[str, Any]) -> dict[int, list[Mapping[str, Any]]]:
    """Return what became of the casebook's expectations, by the place of the finding that each was held against.

    Empty before the run has ended. An expectation of a finding that was not made is at no place.
    """
    casebook, results = record.get("casebook"), expected_results(record)
    written = casebook.get("expect") if isinstance(casebook, Mapping) else None
    if not isinstance(written, list) or len(results) != len(written):
        return {}
    stages = _stages(findings, casebook)
    found: dict[int, list[Mapping[str, Any]]] = {}
    for each, result in zip(written, results, strict=True):
        meant = (
            i
            for i, finding in enumerate(findings)
            if each.get("analysis") in (finding.analysis, finding.name) and each.get("stage") in (None, stages[i])
        )
        if (at := next(meant, None)) is not None:
            found.setdefault(at, []).append(result)
    return found


def expected_results(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what became of each expectation (`expected`, `met`, `found`); [] before the run has ended."""
    expected = record.get("expected")
    if not isinstance(expected, Mapping) or not {"of", "differs_in", "results"} <= set(expected):
        return []
    results = expected["results"] if isinstance(expected["results"], list) else []
    whole = [each for each in results if isinstance(each, Mapping) and {"expected", "met", "found"} <= set(each)]
    return whole if len(whole) == len(results) else []


def names_analyses(record: Mapping[str, Any]) -> bool:
    """Return whether a run's casebook asks for any finding."""
    return bool(_asked(record.get("casebook")))


def _asked(casebook: Any) -> list[tuple[str, str]]:
    """Return each analysis of a casebook: its stage, and what its finding is called."""
    stages = casebook.get("stages") if isinstance(casebook, Mapping) else None
    return [
        (str(stage.get("name")), labelled(request)[2])
        for stage in (stages if isinstance(stages, list) else ())
        if isinstance(stage, Mapping)
        for request in stage.get("analyses") or ()
    ]


def _stages(findings: Sequence[Finding], casebook: Any) -> list[str | None]:
    """Return the stage that made each finding: findings stand in the casebook's order, some left out."""
    asked = _asked(casebook)
    found: list[str | None] = []
    for finding in findings:
        names = (finding.name, finding.analysis)
        at = next((i for i, (_, label) in enumerate(asked) if label in names), None)
        found.append(None if at is None else asked[at][0])
        asked = asked if at is None else asked[at + 1 :]
    return found


def _standard_error(interval: Interval | None) -> float:
    if interval is None:
        return 0.0
    return (interval.high - interval.low) / (2 * NormalDist().inv_cdf(0.5 + interval.level / 2))
