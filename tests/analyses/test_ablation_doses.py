from __future__ import annotations

import numpy as np
import pytest

from probe.analyses.ablation_doses import ablation_doses
from probe.analyses.head_ablation import head_ablation
from tests.effects.ablation_doses import DOSES, NUM_PROMPTS, experiment, planted


def rate(traces, condition, draw=None):
    return 100 * np.mean([t.outcome.correct for t in traces if t.condition == condition and t.facts["draw"] == draw])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_dose_is_held_against_its_own_control(seed):
    traces = planted(0.9, seed)
    finding = ablation_doses(traces)
    rows = finding.records()
    assert [row["num_heads"] for row in rows] == list(DOSES)
    for row in rows:
        number = row["num_heads"]
        others = np.mean([rate(traces, f"others-{number}", draw) for draw in range(8)])
        assert row["accuracy"] == pytest.approx(rate(traces, f"top-{number}"), rel=1e-3)
        assert row["accuracy_others"] == pytest.approx(others, rel=1e-3)
        assert row["difference"] == pytest.approx(rate(traces, f"top-{number}") - others, rel=1e-3)
        alone = head_ablation(traces, treatment=f"top-{number}")
        assert row["difference"] == pytest.approx(alone.comparison.difference, rel=1e-3)
    assert finding.verdict == "supported"
    assert (finding.measured.value, finding.measured.interval.low, finding.measured.interval.high) == (2, 1, 2)


def test_a_model_that_breaks_without_any_heads_is_not_broken_by_these():
    finding = ablation_doses(experiment({1: 0.3, 2: 0.3, 4: 0.3}, 0.3, 0.02, 0))
    assert finding.verdict == "inconclusive"
    assert finding.measured.value is None


def test_where_no_dose_differs_by_much_it_is_refuted():
    finding = ablation_doses(experiment({1: 1.0, 4: 1.0}, 1.0, 0.0, 0), margin=20.0)
    assert finding.verdict == "refuted"
    assert f"n = {NUM_PROMPTS} prompts" in finding.claim


def test_a_treatment_without_a_control_is_counted():
    traces = [t for t in planted(0.9, 0) if t.condition != "others-1"]
    finding = ablation_doses(traces)
    assert [row["num_heads"] for row in finding.records()] == [2, 4]
    assert finding.measured.dropped == 1
