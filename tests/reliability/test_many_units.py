"""A sweep of thousands of units that read nothing: what keeping books of them takes grows as their number does."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

import probe
from probe import capture
from probe.casebook import Casebook
from probe.outcome import Outcome
from probe.storage import commits
from probe.workloads.needle import needle
from tests.reliability.figures import Measured

CONDITIONS = ("a", "b", "c", "d")


def sweep(units: int) -> Casebook:
    """Return a casebook of so many units: five depths under four conditions."""
    conditions = {name: {"role": "treatment" if i else "baseline"} for i, name in enumerate(CONDITIONS)}
    analyses = ["effective_length", {"compare_conditions": {}}]
    workload = {"lengths": [48], "depths": [0.0, 0.25, 0.5, 0.75, 1.0], "samples": units // 20}
    return Casebook(
        format=1,
        name="sweep",
        question="What does keeping books take?",
        model="needle",
        workload={"needle": workload},
        stages=({"name": "read", "conditions": conditions, "analyses": analyses},),
    )


@pytest.fixture
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put the right answer in the place of the model's; the list says what was asked."""
    asked: list[str] = []

    def read(_: Any, sample: Any, *rest: Any, **options: Any) -> Outcome:
        asked.append(sample.name)
        chances = (-0.1,) * len(sample.answer_tokens)
        return Outcome("x", sample.answer_tokens, True, "exact", chances)

    monkeypatch.setattr(capture, "read", read)
    return asked


def test_what_is_done_for_each_unit_is_done_once(
    tmp_path: Path, nothing_is_read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"parsed": 0, "made": 0}
    parse, make = commits._record, needle.build

    def parsed(*given: Any) -> Any:
        counts["parsed"] += 1
        return parse(*given)

    def made(self: needle, tokenizer: Any) -> Any:
        counts["made"] += 1
        return make(self, tokenizer)

    monkeypatch.setattr(commits, "_record", parsed)
    monkeypatch.setattr(needle, "build", made)
    model, seen = probe.load("needle"), {}
    for units in (40, 80):
        counts["parsed"] = 0
        probe.run(sweep(units), model=model, out=tmp_path / str(units))
        seen[units] = counts["parsed"]
    assert len(nothing_is_read) == 120
    # Once for each run, whatever the conditions; and the record is read as often for many units as for few.
    assert counts["made"] == 2
    assert seen[80] == 2 * seen[40]
    nothing_is_read.clear()
    probe.run(sweep(80), model=model, out=tmp_path / "80")
    assert nothing_is_read == []


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_ten_thousand_units_take_ten_times_what_a_thousand_take(
    tmp_path: Path, nothing_is_read: list[str], measured: Measured
) -> None:
    model = probe.load("needle")
    sizes, taken = (1000, 2000, 4000, 10_000), {}
    for units in (100, *sizes):
        spent = {}
        for phase in ("first", "again"):
            began = time.process_time()
            run = probe.run(sweep(units), model=model, out=tmp_path / str(units))
            spent[phase] = time.process_time() - began
        began = time.process_time()
        assert run.verify() == []
        spent["verify"] = time.process_time() - began
        assert len(run) == units
        taken[units] = spent
    assert len(nothing_is_read) == 100 + sum(sizes)
    powers = {
        phase: math.log(taken[10_000][phase] / taken[1000][phase]) / math.log(10)
        for phase in ("first", "again", "verify")
    }
    most = taken[10_000]
    measured(
        "sweep",
        f"10,000 units that read nothing, in seconds of one core: planned, committed and analysed {most['first']:.0f}, "
        f"gone on with {most['again']:.0f}, verified {most['verify']:.1f}; from 1,000 units on by the powers "
        f"{', '.join(f'{power:.2f}' for power in powers.values())} of their number",
    )
    assert max(powers.values()) < 1.3
