"""Where the heads that copy look, with a condition and without it, as planted."""

from __future__ import annotations

from typing import Any

import pytest

from probe.analyses.compare_conditions import compare_conditions
from probe.finding import Finding, Measurement
from tests.analyses.conftest import make_keys, make_sample, make_trace

CURE = {"interpolate_positions": {"factor": "auto"}}


def named(finding: Finding, part: str) -> list[Measurement]:
    return [each for each in finding.details if part in each.name]


def planted() -> list[Any]:
    """Heads (2, 1) and (2, 3) copy at 64 tokens; at 128 they miss, and the cure brings one of them back."""
    made = []
    for index in range(12):
        for length in (64, 128):
            sample, short = make_sample(index, length=length), length == 64
            without = {(2, 1): float(short), (2, 3): float(short)}
            cured = {(2, 1): 1.0, (2, 3): float(short)}
            made.append(make_trace(sample, correct=short, keys=make_keys(sample, without, seed=index)))
            made.append(
                make_trace(sample, role="treatment", intervention=CURE, keys=make_keys(sample, cured, seed=100 + index))
            )
    return made


def test_the_copying_heads_are_followed_by_length() -> None:
    finding = compare_conditions(planted())
    short, long = named(finding, "the 2 heads that copy look at the right token")
    assert "64 tokens (without: 100 %)" in short.name
    assert short.value == pytest.approx(0)
    assert "128 tokens (without: 0 %)" in long.name
    assert long.value == pytest.approx(50)
    assert (long.unit, long.n) == ("points", 12)


def test_right_answers_are_told_by_length() -> None:
    finding = compare_conditions(planted())
    found = {each.name: each.value for each in named(finding, "right answers at")}
    assert found == {
        "treatment: right answers at 64 tokens, more than with nothing done": 0,
        "treatment: right answers at 128 tokens, more than with nothing done": 100,
    }


def test_nothing_is_said_where_no_answer_is_right_without() -> None:
    traces = [each for each in planted() if each.sample.facts["length"] == 128]
    assert not named(compare_conditions(traces), "heads that copy")
