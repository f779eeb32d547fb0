from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from probe.analyses.flip_flop_errors import flip_flop_errors


def texts(sample, trace, errors, num=60, length=256, seed=0, masses=None):
    """Texts of each language, of which the given share is read wrongly, those with old writes first."""
    generator = np.random.default_rng(seed)
    made = []
    for p, rate in errors.items():
        ages = generator.integers(1, 100, num)
        wrong = np.zeros(num, bool)
        wrong[np.argsort(-ages)[: round(rate * num)]] = True
        for i in range(num):
            each = sample(i, length=length, p=p, age_pairs=int(ages[i]))
            each = type(each)(**{**vars(each), "name": f"flip_flop-{length}-{p}-s{i}"})
            arrays = None
            if masses is not None:
                last, earlier = masses[bool(wrong[i])]
                mass = np.full((2, 3, 1, 3), 0.01)
                mass[1, 2, 0] = (last, earlier / 2, earlier / 2)
                arrays = {"span_mass": (("layer", "head", "row", "span"), mass)}
            one = trace(each, correct=not wrong[i], arrays=arrays)
            if masses is not None:
                one.dataset = one.dataset.assign_coords(span=["needle_value", "write_1", "write_2"])
            made.append(one)
    return made


def test_planted_glitches_are_found_with_their_exact_interval(sample, trace):
    finding = flip_flop_errors(texts(sample, trace, {0.8: 0.0, 0.98: 0.2, 0.1: 0.05}))
    assert finding.verdict == "supported"
    assert finding.measured.value == pytest.approx(0.2)
    exact = stats.binomtest(12, 60).proportion_ci(method="exact")
    assert finding.measured.interval.low == pytest.approx(exact.low)
    assert finding.measured.interval.high == pytest.approx(exact.high)
    p = stats.fisher_exact([[12, 48], [0, 60]], alternative="greater").pvalue
    assert finding.comparison.p_value == pytest.approx(2 * p)
    assert "FFL(0.98)" in finding.headline
    ages = {row["age_pairs"]: row for row in finding.records() if row["p_ignored"] == 0.98}
    assert ages["all"]["num_wrong"] == 12
    assert ages["64-127"]["num_wrong"] == 12
    assert sum(row["num_reads"] for age, row in ages.items() if age != "all") == 60


@pytest.mark.parametrize(
    ("masses", "words"),
    [
        ({False: (0.6, 0.02), True: (0.01, 0.02)}, "the write is lost"),
        ({False: (0.6, 0.02), True: (0.1, 0.5)}, "an earlier write is mistaken for it"),
        ({False: (0.6, 0.02), True: (0.5, 0.1)}, "does not tell why"),
    ],
)
def test_where_it_looks_when_it_errs_is_told_apart(sample, trace, masses, words):
    finding = flip_flop_errors(texts(sample, trace, {0.8: 0.0, 0.98: 0.3}, masses=masses))
    assert words in finding.claim
    details = {each.name: each.value for each in finding.details}
    assert details["attention to the last write in right reads, head (1, 2)"] == pytest.approx(0.6)


def test_no_error_in_many_reads_is_refuted_and_in_few_is_not(sample, trace):
    assert flip_flop_errors(texts(sample, trace, {0.8: 0, 0.98: 0}, num=500)).verdict == "refuted"
    few = flip_flop_errors(texts(sample, trace, {0.8: 0, 0.98: 0}, num=60))
    assert few.verdict == "inconclusive"
    # 0.99^368 is the first power below 0.025.
    assert any("368 reads" in note for note in few.notes)


def test_a_model_that_guesses_has_no_glitches_but_no_memory(sample, trace):
    finding = flip_flop_errors(texts(sample, trace, {0.8: 0.5, 0.98: 0.9}))
    assert finding.verdict == "inconclusive"
    assert any("cannot be shown to do the task" in note for note in finding.notes)


def test_nulls_are_supported_no_more_often_than_the_test_allows(sample, trace):
    generator, found = np.random.default_rng(5), 0
    for seed in range(200):
        rates = {p: generator.binomial(40, 0.05) / 40 for p in (0.8, 0.98, 0.1)}
        found += flip_flop_errors(texts(sample, trace, rates, num=40, seed=seed)).verdict == "supported"
    # 95 % of binomial(200, 0.05) lie at or below 15.
    assert found <= 15


def test_other_texts_are_counted_and_one_language_alone_tells_nothing(sample, trace):
    finding = flip_flop_errors([*texts(sample, trace, {0.8: 0.0}, num=5), trace(sample(0))])
    assert finding.verdict == "inconclusive"
    assert finding.measured.dropped == 1
    assert any("not a flip-flop text" in note for note in finding.notes)


def test_dilution_and_drift_are_what_was_planted(sample, trace):
    """The last write loses 5 points a doubling, earlier ones gain 3; languages differ in level, as old writes do."""
    made = []
    for i, age in enumerate([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64] * 4):
        language = int(age > 8)
        each = sample(i, length=256, p=(0.8, 0.98)[language], age_pairs=age)
        last = 0.4 + 0.3 * language - 0.05 * np.log2(age)
        share = 0.1 + 0.2 * language + 0.03 * np.log2(age)
        mass = np.full((2, 3, 1, 2), 0.001)
        mass[1, 0, 0] = (last, last * share / (1 - share))
        one = trace(each, correct=True, arrays={"span_mass": (("layer", "head", "row", "span"), mass)})
        one.dataset = one.dataset.assign_coords(span=["needle_value", "write_1"])
        made.append(one)
    finding = flip_flop_errors(made)
    details = {each.name.split(":")[0]: each for each in finding.details}
    assert details["dilution"].value == pytest.approx(-5.0)
    assert details["dilution"].interval.low == pytest.approx(-5.0)
    assert details["drift"].value == pytest.approx(3.0)
    assert "attention_by_age" in {figure.name for figure in finding.figures}


def test_attention_that_does_not_change_with_age_is_neither_diluted_nor_drifts(sample, trace):
    generator, inside = np.random.default_rng(3), 0
    for _ in range(30):
        made = []
        for i in range(40):
            each = sample(i, length=256, p=(0.8, 0.98)[i % 2], age_pairs=int(generator.integers(1, 100)))
            mass = generator.uniform(0.05, 0.4, (1, 1, 1, 2))
            one = trace(each, correct=True, arrays={"span_mass": (("layer", "head", "row", "span"), mass)})
            one.dataset = one.dataset.assign_coords(span=["needle_value", "write_1"])
            made.append(one)
        details = {each.name.split(":")[0]: each for each in flip_flop_errors(made).details}
        inside += details["dilution"].interval.low <= 0 <= details["dilution"].interval.high
        inside += details["drift"].interval.low <= 0 <= details["drift"].interval.high
    # Of 60 exact intervals fewer than 51 would hold the truth in one of a thousand seeds; 40 reads cost some.
    assert inside >= 50


def test_a_condition_s_reads_are_measured_where_it_is_named(sample, trace):
    """What an intervention was on for is no baseline, and a baseline is nobody's condition."""
    made = texts(sample, trace, {0.8: 0.0, 0.98: 0.2})
    under = texts(sample, trace, {0.8: 0.0, 0.98: 0.5})
    for each in under:
        each.condition, each.facts = "sharper", {**each.facts, "role": "treatment"}
    assert flip_flop_errors([*made, *under]).measured.value == pytest.approx(0.2)
    finding = flip_flop_errors([*made, *under], condition="sharper")
    assert finding.measured.value == pytest.approx(0.5)
    assert "under the condition sharper" in finding.definition
    assert flip_flop_errors(made, condition="sharper").verdict == "inconclusive"
