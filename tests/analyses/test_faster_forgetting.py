"""What faster forgetting brings back: the paired test, its margins, and what is missing."""

from __future__ import annotations

import math

import pytest

import probe
from tests.effects.faster_forgetting import answers


def test_what_comes_back_is_counted_pair_by_pair():
    traces = answers(0.6, seed=1)
    finding = probe.faster_forgetting(traces)
    assert finding == probe.faster_forgetting(traces[::-1])
    right = {role: {} for role in ("baseline", "treatment")}
    for trace in traces:
        right[trace.facts["role"]][trace.sample.name] = trace.outcome.correct
    long = [trace.sample.name for trace in traces if len(trace.sample) >= 128 and trace.facts["role"] == "baseline"]
    gained = sum(right["treatment"][name] and not right["baseline"][name] for name in long)
    lost = sum(right["baseline"][name] and not right["treatment"][name] for name in long)
    tail = sum(math.comb(gained + lost, i) for i in range(min(gained, lost) + 1)) / 2 ** (gained + lost)
    assert finding.verdict == "supported"
    assert finding.comparison.p_value == pytest.approx(min(1, 2 * tail))
    assert finding.comparison.difference == pytest.approx((gained - lost) / 40)
    assert finding.measured.value == sum(right["treatment"][name] for name in long) / 40
    assert finding.control.value == sum(right["baseline"][name] for name in long) / 40
    short = [name for name in right["baseline"] if name not in long]
    assert f"within 64 tokens {sum(right['treatment'][name] for name in short) / 20:.0%}" in finding.claim
    assert [row["num_prompts"] for row in finding.records()] == [20] * 6


def test_nothing_comes_back_where_nothing_changes():
    same = [t for t in answers(0.0, seed=0, kept=1.0) if len(t.sample) > 64]
    assert probe.faster_forgetting(same).verdict == "refuted"


def test_what_is_missing_is_said():
    traces = answers(0.6, seed=1)
    for given, parameters, said in (
        ([t for t in traces if t.facts["role"] == "baseline"], {}, "no condition has the role `treatment`"),
        ([t for t in traces if len(t.sample) == 64], {}, "no recent answer in a text of twice the training length"),
        (traces, {"trained": 200}, "no recent answer in a text of twice the training length"),
        ([], {}, "the training length is not known"),
    ):
        finding = probe.faster_forgetting(given, **parameters)
        assert finding.verdict == "inconclusive"
        assert said in finding.claim
