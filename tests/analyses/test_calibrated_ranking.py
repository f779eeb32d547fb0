from __future__ import annotations

import numpy as np
import pytest

from probe.analyses.calibrated_ranking import calibrated_ranking
from probe.errors import UsageError
from tests.effects.calibrated_ranking import planted
from tests.effects.document_attention import document_sample, document_trace


def details(finding):
    return {each.name: each for each in finding.details}


def prompts(attention, golds, *, number=4):
    return [
        document_trace(document_sample(i, gold, number=number), np.asarray(attention[i], float), role="baseline")
        for i, gold in enumerate(golds)
    ]


def dummies(profile, index=99, number=4):
    sample = document_sample(index, 1, given="all_dummies", number=number)
    return [document_trace(sample, np.asarray(profile, float), role="other")]


def test_recall_is_counted_by_hand():
    # Documents' attention with the gold at place 1 (an inner one of four); a dummy gets this at each place:
    bias = [4e-3, 1e-3, 1e-3, 2e-3]
    attention = [
        [5e-3, 3e-3, 1e-3, 2e-3],  # as it is 2nd; less 1, 2, 0, 0: first; over 1.25, 3, 1, 1: first
        [9e-3, 3e-3, 1e-3, 2e-3],  # as it is 2nd; less 5, 2: second; over 2.25, 3: first
        [2e-3, 3e-3, 1e-3, 2e-3],  # first by all
        [5e-3, 1e-3, 1e-3, 2e-3],  # as it is last (a tie counts against it); less 1, 0, 0, 0: last
    ] * 3
    finding = calibrated_ranking(prompts(attention, [1] * 12) + dummies(bias), most=1)
    found = details(finding)
    assert found["Recall@1, as it is, gold at inner places"].value == pytest.approx(25)
    assert found["Recall@1, subtract, gold at inner places"].value == pytest.approx(50)
    assert found["Recall@1, divide, gold at inner places"].value == pytest.approx(75)
    assert finding.measured.value == pytest.approx(25)
    assert found["Recall@1 gained by divide, gold at inner places"].value == pytest.approx(50)
    # Three pairs differ, all one way: 2 · 0.5³.
    assert finding.comparison.p_value == pytest.approx(0.25)
    assert finding.verdict == "inconclusive"
    divided = calibrated_ranking(prompts(attention, [1] * 12) + dummies(bias), most=1, form="divide")
    assert divided.measured.value == pytest.approx(50)
    assert divided.comparison.p_value == pytest.approx(2 * 0.5**6)


def test_ends_and_inner_places_are_told_apart():
    attention = [[5e-3, 1e-3, 1e-3, 1e-3], [5e-3, 2e-3, 1e-3, 1e-3]] * 6
    finding = calibrated_ranking(prompts(attention, [0, 1] * 6) + dummies([5e-3, 1e-3, 1e-3, 1e-3]), most=1)
    found = details(finding)
    assert found["Recall@1, as it is, gold at the ends"].value == 100
    # Less the dummy's all are 0: a tie, which counts against the gold.
    assert found["Recall@1, subtract, gold at the ends"].value == 0
    assert finding.measured.value == 100
    assert [row["num_prompts"] for row in finding.records()] == [6, 6]


def test_a_prompts_own_dummies_come_before_the_mean_of_others():
    attention = [[5e-3, 3e-3, 1e-3, 2e-3]] * 6
    own = [trace for i in range(6) for trace in dummies([1e-3, 4e-3, 1e-3, 2e-3], index=i)]
    finding = calibrated_ranking(prompts(attention, [1] * 6) + own + dummies([9e-3, 1e-3, 1e-3, 2e-3]), most=1)
    assert details(finding)["Recall@1, subtract, gold at inner places"].value == 0


def test_it_says_what_is_missing():
    finding = calibrated_ranking(prompts([[1e-3] * 4] * 8, [1] * 8))
    assert finding.verdict == "inconclusive"
    assert finding.measured.dropped == 8
    assert any("no dummies were read at this length" in note for note in finding.notes)


def test_what_is_planted_is_found_and_shuffled_dummies_are_no_help():
    finding = calibrated_ranking(planted(2.0, 3), most=1)
    assert finding.verdict == "supported"
    assert finding.control.interval.high < finding.measured.value


@pytest.mark.parametrize("fields", [{"form": "add"}, {"most": 0}])
def test_parameters_are_checked(fields):
    with pytest.raises(UsageError, match=next(iter(fields))):
        calibrated_ranking([], **fields)
