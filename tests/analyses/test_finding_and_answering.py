from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from probe.analyses.finding_and_answering import finding_and_answering
from probe.analyses.measures.three_roles import kl_of_the_answer


def questions(sample, trace, counts, length=128, masses=None, half=None):
    """Questions by (right in the whole text, from the gold alone, without it) and how many there are of each."""
    made, i = [], 0
    for (whole, alone, absent), number in counts.items():
        for _ in range(number):
            one = sample(i, length=length, **({"half": half[i % 2]} if half else {}))
            arrays = None
            if masses is not None:
                mass = np.full((3, 4, 4, 2), 0.01)
                mass[2, 1, :, 0] = masses[whole]
                arrays = {"span_mass": (("layer", "head", "row", "span"), mass)}
            read = trace(one, correct=whole, loss=0.1 if whole else 2.0, arrays=arrays)
            if masses is not None:
                read.dataset = read.dataset.assign_coords(span=["needle_value", "question"])
            made += [
                read,
                trace(one, correct=alone, role="gold_only", loss=0.05 if alone else 3.0),
                trace(one, correct=absent, role="needle_absent", loss=4.0),
            ]
            i += 1
    return made


LOST = {(True, True, False): 20, (False, True, False): 15, (True, False, False): 2, (False, False, False): 3}


def test_flips_are_counted_with_exact_intervals_and_mcnemar_s_test(sample, trace):
    finding = finding_and_answering(questions(sample, trace, LOST))
    assert finding.verdict == "supported"
    assert (finding.measured.value, finding.control.value) == (pytest.approx(15 / 40), pytest.approx(2 / 40))
    exact = stats.binomtest(15, 40).proportion_ci(method="exact")
    assert (finding.measured.interval.low, finding.measured.interval.high) == pytest.approx((exact.low, exact.high))
    assert finding.comparison.p_value == pytest.approx(stats.binomtest(15, 17).pvalue)
    assert "of 18 wrong answers 15 would have been right from the gold alone" in finding.claim
    [row] = finding.records()
    assert (row["right_whole_text"], row["right_gold_only"], row["right_gold_absent"]) == (22, 35, 0)
    assert row["answer_loss_whole_text"] == pytest.approx((22 * 0.1 + 18 * 2.0) / 40, abs=1e-3)
    assert row["answer_loss_gold_only"] == pytest.approx((35 * 0.05 + 5 * 3.0) / 40, abs=1e-3)


def test_a_model_that_loses_nothing_is_refuted_and_few_questions_tell_nothing(sample, trace):
    assert finding_and_answering(questions(sample, trace, {(True, True, False): 100})).verdict == "refuted"
    few = finding_and_answering(questions(sample, trace, {(True, True, False): 20}))
    assert few.verdict == "inconclusive"
    assert any("without any flip" in note for note in few.notes)


@pytest.mark.parametrize("counts", [{(False, False, False): 60}, {(True, True, True): 30, (False, True, True): 30}])
def test_a_model_that_answers_no_better_than_it_guesses_has_nothing_to_find(sample, trace, counts):
    finding = finding_and_answering(questions(sample, trace, counts))
    assert finding.verdict == "inconclusive"
    assert "not shown to answer even from the gold alone" in finding.claim


@pytest.mark.parametrize(
    ("masses", "words"),
    [({True: 0.8, False: 0.05}, "they do not look"), ({True: 0.8, False: 0.75}, "they look all the same")],
)
def test_looking_and_not_looking_are_told_apart(sample, trace, masses, words):
    finding = finding_and_answering(questions(sample, trace, LOST, masses=masses, half=("find", "test")))
    assert words in finding.claim
    details = {each.name: each.value for each in finding.details}
    assert details["attention of those heads to the gold, answer right"] == pytest.approx(0.8)
    assert finding.suggests[0].fields["heads"] == [[2, 1]]


def test_looks_are_compared_over_lengths_at_which_both_answers_occur(sample, trace):
    # At 64 tokens all is right and looked at, at 256 nothing is either: length alone would make the difference.
    traces = questions(sample, trace, {(True, True, False): 10}, length=64, masses={True: 0.8, False: 0.0})
    traces += questions(sample, trace, {(False, True, False): 10}, length=256, masses={True: 0.8, False: 0.0})
    finding = finding_and_answering(traces)
    assert "look" not in finding.claim
    assert any("do not occur at one length" in note for note in finding.notes)


def test_each_length_counts_as_it_does_among_wrong_answers(sample, trace):
    # Heads look less at 256 tokens, in right answers as in wrong ones, and most wrong answers are there.
    short = {(True, True, False): 12, (False, True, False): 4}
    long = {(True, True, False): 4, (False, True, False): 12}
    traces = questions(sample, trace, short, length=64, masses={True: 0.8, False: 0.8})
    traces += questions(sample, trace, long, length=256, masses={True: 0.2, False: 0.2})
    finding = finding_and_answering(traces)
    details = {each.name: each.value for each in finding.details}
    expected = (4 * 0.8 + 12 * 0.2) / 16
    assert details["attention of those heads to the gold, answer right"] == pytest.approx(expected)
    assert details["attention of those heads to the gold, answer wrong"] == pytest.approx(expected)


def test_kl_over_two_events_is_the_closed_form_and_a_lower_bound():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p, q = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
        two = p[0] * math.log(p[0] / q[0]) + (1 - p[0]) * math.log((1 - p[0]) / (1 - q[0]))
        # A fair half of the answer's probability in each of two tokens.
        assert kl_of_the_answer([math.log(p[0])], [math.log(q[0])]) == pytest.approx(two)
        halves = [math.log(q[0]) / 2] * 2
        assert kl_of_the_answer([math.log(p[0]), 0.0], halves) == pytest.approx(two)
        assert two <= (p * np.log(p / q)).sum() + 1e-12
    assert kl_of_the_answer([0.0], [0.0]) == 0
    assert kl_of_the_answer([0.0], [-1.0]) == pytest.approx(1.0)
    assert kl_of_the_answer([-1.0], [-math.inf]) == math.inf
    assert kl_of_the_answer([], []) is None


def test_questions_that_were_not_asked_twice_are_counted(sample, trace):
    traces = questions(sample, trace, LOST)
    finding = finding_and_answering([*traces, trace(sample(99, length=128))])
    assert finding.measured.dropped == 1
    alone = finding_and_answering([trace(sample(0))])
    assert alone.verdict == "inconclusive"
    assert "both over the whole text" in alone.claim
