from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from probe.analyses.generation_drift import generation_drift
from probe.analyses.measures.output_growth import longest_repeat, repeated
from tests.effects.generation_drift import answers, planted


def said(finding):
    return {each.name: each for each in finding.details}


def with_response(traces, **fields):
    return [dataclasses.replace(each, outcome=dataclasses.replace(each.outcome, **fields)) for each in traces]


def test_constraints_are_counted_by_the_phrase_in_the_response():
    traces = answers(lambda at: float(at < 0.5), np.random.default_rng(0))
    finding = generation_drift(traces)
    assert finding.verdict == "supported"
    assert (finding.measured.value, finding.control.value) == (0, 1)
    assert finding.comparison.difference == -1
    assert [row["kept"] for row in finding.records()] == [1] * 6 + [0] * 6
    assert [row["kept_without_the_text"] for row in finding.records()] == [0] * 12
    assert "0% of its constraints are kept in the last third of the items, 100% in the first" in finding.claim


def test_an_item_that_the_prompt_began_counts_to_no_third():
    traces = answers(lambda at: float(at == 0), np.random.default_rng(0))
    for each in traces:
        each.sample.facts["constraints"][0][1] = "begun"
    finding = generation_drift(traces)
    assert (finding.measured.value, finding.control.value) == (0, 0)
    assert finding.verdict == "inconclusive"
    assert finding.records()[0]["kept"] == 1


def test_a_steady_model_is_refuted_and_a_guessing_one_is_not():
    assert generation_drift(answers(lambda _: 0.97, np.random.default_rng(0))).verdict == "refuted"
    guessing = generation_drift(answers(lambda at: 0.6 - 0.5 * at, np.random.default_rng(0), absent=1.0))
    assert guessing.verdict == "inconclusive"
    assert any("nothing can be lost" in note for note in guessing.notes)


def test_attention_to_the_prompt_stands_beside_uniform_attention_and_windows_are_left_out():
    traces = answers(lambda _: 1.0, np.random.default_rng(0))
    for each in traces:
        if "span_mass" in each:
            mass = np.zeros((3, 4, 96, 1))
            # Two layers whose window has left the prompt, and one that gives it less and less.
            mass[2, ..., 0] = np.linspace(0.9, 0.3, 96)
            mass[0, :, :2] = 1.0
            each.dataset["span_mass"] = (("layer", "head", "row", "span"), mass)
    details = said(generation_drift(traces))
    assert details["attention to the prompt, first eighth of the steps"].value == pytest.approx(
        np.linspace(0.9, 0.3, 96)[:12].mean()
    )
    assert details["attention to the prompt, last eighth of the steps"].value == pytest.approx(
        np.linspace(0.9, 0.3, 96)[-12:].mean()
    )
    uniform = np.mean([128 / (128 + r) for r in range(84, 96)])
    assert details["uniform attention to the prompt, last eighth of the steps"].value == pytest.approx(uniform)


def test_the_loss_after_right_items_is_that_of_the_items_own_tokens():
    traces = [each for each in answers(lambda _: 1.0, np.random.default_rng(0)) if each.facts["role"] == "baseline"]
    losses = np.repeat(np.arange(12) / 10, 8)
    finding = generation_drift(with_response(traces, answer_log_probability=tuple(-losses)))
    assert [row["loss_after_right_items"] for row in finding.records()] == pytest.approx(list(np.arange(12) / 10))
    details = said(finding)
    assert details["loss of the right answer after right items, first third"].value == pytest.approx(0.15)
    assert details["loss of the right answer after right items, last third"].value == pytest.approx(0.95)


def test_repeats_and_the_end_are_counted():
    assert repeated([1, 2, 3, 4, 5, 1, 2, 3, 4, 1]).tolist() == [0] * 8 + [1, 0]
    assert longest_repeat([1, 2, 3, 9, 1, 2, 3, 7]) == 3
    assert longest_repeat([5] * 10) == 9
    assert longest_repeat([1, 2, 3]) == longest_repeat([]) == 0
    traces = answers(lambda at: float(at < 0.9), np.random.default_rng(0))
    looping = with_response(traces, response_tokens=(1, 2, 3, 4) * 8 + (7,) + (9,) * 20)
    details = said(generation_drift(looping))
    # 33 tokens up to the end token: the first 7 cannot end a repeat, the end token does not, the 25 between do.
    assert details["tokens that end a repeat of 4 tokens, first third of the output"].value == pytest.approx(4 / 11)
    assert details["tokens that end a repeat of 4 tokens, last third of the output"].value == pytest.approx(10 / 11)
    assert details["longest repeat"].value == 28
    assert details["ended by itself before the last item"].value == 1


def test_what_cannot_be_told_is_counted(sample, trace):
    finding = generation_drift([*planted(0.5, 0), trace(sample(0))])
    assert finding.measured.dropped == 1
    assert any("states no constraints" in note for note in finding.notes)
    assert generation_drift([trace(sample(0))]).verdict == "inconclusive"
