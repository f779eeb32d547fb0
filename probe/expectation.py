"""What a casebook expects to find, and whether a run found it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from pydantic import Field, JsonValue, model_validator

from probe.finding import Finding, Measurement, Verdict
from probe.stage import Strict

_THERE_ARE: Final = "; there are "


class Expectation(Strict):
    """A verdict, or the range of a number, that an analysis of the casebook is to give."""

    analysis: str = Field(description="Name of an analysis that a stage runs, or what its finding is called (`as`).")
    stage: str | None = Field(default=None, description="Its stage, where it stands in two.")
    verdict: Verdict | None = Field(default=None, description="The verdict expected.")
    measure: str | None = Field(
        default=None,
        description="Name of the finding's measurement: the headline, its control, or one of the details. Without it "
        "`between` is of the headline.",
    )
    between: tuple[float | None, float | None] | None = Field(
        default=None, description="Least and largest value allowed, both included; null leaves a side open."
    )

    @model_validator(mode="before")
    @classmethod
    def _a_list_is_a_tuple(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("between"), list):
            return {**value, "between": tuple(value["between"])}
        return value

    @model_validator(mode="after")
    def _says_something(self) -> Expectation:
        if self.verdict is None and self.between is None:
            raise ValueError("expects nothing: give `verdict`, or `between`, or both")
        if self.measure is not None and self.between is None:
            raise ValueError("`measure` names a number, and `between` is missing")
        low, high = self.between or (None, None)
        if self.between is not None and low is None and high is None:
            raise ValueError("`between` allows every number")
        if low is not None and high is not None and low > high:
            raise ValueError(f"`between` is from {low:g} to {high:g}, which no number is")
        return self

    def __str__(self) -> str:
        what = self.analysis if self.stage is None else f"{self.analysis} in {self.stage}"
        said: list[str] = [] if self.verdict is None else [self.verdict]
        if self.between is not None:
            low, high = self.between
            if low is None or high is None:
                allowed = f"at most {high:g}" if low is None else f"at least {low:g}"
            else:
                allowed = f"from {low:g} to {high:g}"
            said.append(f"{self.measure or 'headline'} {allowed}")
        return f"{what}: {', '.join(said)}"


def judged(
    expectations: Iterable[Expectation], found: Iterable[tuple[str, Finding]], reasons: Sequence[str]
) -> list[dict[str, JsonValue]]:
    """Return what became of each expectation, as JSON values: `expected`, `met`, `found`.

    `found` are findings with their stages, `reasons` say why others were not made. What was not found, not measured, or
    goes by another name is not met.
    """
    findings = [*found]
    results = [_judged(each, findings, reasons) for each in expectations]
    # Many expectations of one finding that has none of them would tell its measurements as often.
    told: set[str] = set()
    for result in results:
        what, listed, names = str(result["found"]).partition(_THERE_ARE)
        if listed and names in told:
            result["found"] = f"{what} (see above)"
        told.add(names)
    return results


def _judged(expectation: Expectation, found: list[tuple[str, Finding]], reasons: Sequence[str]) -> dict[str, JsonValue]:
    finding = next(
        (
            f
            for stage, f in found
            if expectation.analysis in (f.analysis, f.name) and expectation.stage in (None, stage)
        ),
        None,
    )
    if finding is None:
        return _said(expectation, False, "; ".join(["no such finding", *reasons]))
    met = expectation.verdict in (None, finding.verdict)
    words: list[str] = [finding.verdict]
    if expectation.between is not None:
        within, told = _within(expectation, finding)
        met = met and within
        words.append(told)
    return _said(expectation, met, ", ".join(words))


def _within(expectation: Expectation, finding: Finding) -> tuple[bool, str]:
    """Return whether the number lies where it should, and what it is."""
    there = [finding.measured, *([finding.control] if finding.control else []), *finding.details]
    named: list[Measurement] = [m for m in there if expectation.measure in (None, m.name)]
    if not named:
        return False, f"no measurement {expectation.measure!r}{_THERE_ARE}{[m.name for m in there]}"
    first = named[0]
    if expectation.measure is not None and len(named) > 1:
        return False, f"{len(named)} measurements are named {expectation.measure!r}"
    told = f"{first.name}: {first}"
    if first.value is None or expectation.between is None:
        return False, told
    low, high = expectation.between
    return (low is None or low <= first.value) and (high is None or first.value <= high), told


def _said(expectation: Expectation, met: bool, found: str) -> dict[str, JsonValue]:
    return {"expected": str(expectation), "met": met, "found": found}
