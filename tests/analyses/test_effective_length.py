from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest
from scipy import stats

from probe.analyses.effective_length import effective_length
from probe.errors import UsageError


def read(sample, trace, rates, *, num=40, role="baseline", **fields):
    """`num` prompts a length, of which this share is right."""
    return [
        trace(sample(i, length=length), correct=i < round(rate * num), role=role, **fields)
        for length, rate in rates.items()
        for i in range(num)
    ]


def diagnosis(sample, trace, rates, *, gold=1.0, absent=0.0, num=40):
    return [
        *read(sample, trace, rates, num=num),
        *read(sample, trace, dict.fromkeys(rates, gold), num=num, role="gold_only"),
        *read(sample, trace, dict.fromkeys(rates, absent), num=num, role="needle_absent"),
    ]


def test_a_clear_failure_to_find_is_said_in_plain_words(sample, trace):
    finding = effective_length(diagnosis(sample, trace, {64: 1, 128: 1, 256: 1, 512: 0.6, 1024: 0.05}))
    assert finding.measured.value == 256
    assert finding.verdict == "supported"
    assert "up to 256 tokens" in finding.claim
    assert "not guessing" in finding.claim
    assert "fails to find, not to answer" in finding.claim
    assert finding.control.value == 0
    # Of 80 prompts at 512 and beyond 16 + 38 are right alone and wrong in the whole text, none the other way.
    assert finding.comparison.n == 80
    assert finding.comparison.difference == pytest.approx(-67.5)
    assert finding.comparison.p_value == pytest.approx(2 * 0.5**54)
    assert finding.headline == "It finds the needle up to 256 tokens and loses it from 512 on"
    assert finding.figures[0].title == finding.headline


def test_a_model_that_cannot_answer_is_not_said_to_fail_to_find(sample, trace):
    finding = effective_length(diagnosis(sample, trace, {64: 0.2, 128: 0.1}, gold=0.3))
    assert finding.measured.value == 0
    assert "cannot answer" in finding.claim
    assert "fails to find" not in finding.claim


def test_a_model_that_guesses_is_caught(sample, trace):
    finding = effective_length(diagnosis(sample, trace, {64: 1, 128: 0.5}, absent=0.5))
    assert "guessing" in finding.claim
    assert "not guessing" not in finding.claim
    assert finding.control.value == pytest.approx(50)


@pytest.mark.parametrize(
    ("right", "n", "words"),
    [
        (0, 1, "whether it guesses cannot be told (needle left out: 0 % right [0, 98], n = 1)"),
        (0, 30, "whether it guesses cannot be told"),
        (0, 40, "it is not guessing (needle left out: 0 of 40 right)"),
        (3, 40, "whether it guesses cannot be told"),
        (20, 40, "it may be guessing (needle left out: 50 % right [34, 66], n = 40)"),
    ],
)
def test_guessing_is_told_by_the_interval_not_the_share(sample, trace, right, n, words):
    absent = [trace(sample(i), correct=i < right, role="needle_absent") for i in range(n)]
    finding = effective_length([*read(sample, trace, {64: 1, 128: 0}), *absent])
    assert words in finding.claim
    assert any("10 %" in note for note in finding.notes)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (2, "whether it fails to find or to answer cannot be told (sentence alone: 10 of 10 right, p = 0.5)"),
        (5, "which suggests that it fails to find rather than to answer (p = 0.062)"),
        (6, "so it fails to find, not to answer"),
    ],
)
def test_fails_to_find_is_flat_only_where_the_paired_test_says_so(sample, trace, wrong, words):
    traces = [
        *read(sample, trace, {64: 1}, num=20),
        *read(sample, trace, {128: 1 - wrong / 10}, num=10),
        *read(sample, trace, {64: 1, 128: 1}, num=10, role="gold_only"),
    ]
    finding = effective_length(traces)
    assert words in finding.claim
    interval = finding.comparison.interval
    assert (interval.low <= 0 <= interval.high) == (finding.comparison.p_value >= 0.05)


def test_lengths_beyond_the_failure_add_to_the_paired_test(sample, trace):
    rates = {64: 1, 512: 0.5, 1024: 0.2}
    finding = effective_length(diagnosis(sample, trace, rates, num=10))
    assert finding.comparison.n == 20
    assert finding.comparison.p_value == pytest.approx(2 * 0.5**13)
    assert "512 tokens and beyond" in finding.comparison.name


@pytest.mark.parametrize(
    ("rights", "n", "headline"),
    [
        ({64: 1, 128: 0.5}, 2, "It may lose the needle at 128 tokens: too few prompts to tell"),
        ({64: 1, 128: 0, 256: 0}, 1, "It may lose the needle from 128 tokens on: too few prompts to tell"),
        (
            {64: 1, 128: 0.5, 256: 0},
            2,
            "It has lost the needle by 256 tokens: too few prompts to tell up to where it finds it",
        ),
        ({64: 1}, 1, "No failure seen up to 64 tokens, but too few prompts to tell"),
        ({64: 1, 128: 1}, 4, "No failure seen up to 128 tokens, but too few prompts to tell"),
        ({64: 1}, 40, "It finds the needle at the one length tried, 64 tokens"),
        ({64: 1, 128: 1}, 40, "It finds the needle at every length tried, up to 128 tokens"),
        ({64: 1, 128: 0, 256: 1}, 20, "It fails at 128 tokens, though not at 256"),
        ({64: 1, 128: 0.8, 256: 0}, 10, "It finds the needle up to 64 tokens and has lost it by 256"),
        ({64: 0, 128: 0}, 20, "It fails from the shortest length on, 64 tokens"),
    ],
)
def test_the_headline_is_no_surer_than_the_verdict(sample, trace, rights, n, headline):
    finding = effective_length(read(sample, trace, rights, num=n))
    assert finding.headline == headline
    assert finding.claim.startswith(headline.split(" up to")[0])
    assert finding.figures[0].title == headline


def test_heads_are_chosen_on_one_half_and_followed_on_the_other(sample, trace, looking):
    traces = []
    for i in range(40):
        made = sample(i, half=("find", "test")[i % 2])
        # On the half that finds, a head copies that has no part in the other.
        traces.append(trace(made, keys=looking(made, {(2, 1): 1.0} if i % 2 == 0 else {}, seed=i)))
    assert effective_length(traces).records()[0]["heads_at_source"] == 0


def test_no_failure_is_refuted_only_with_enough_prompts(sample, trace):
    assert effective_length(diagnosis(sample, trace, {64: 1, 128: 1})).verdict == "refuted"
    assert effective_length(diagnosis(sample, trace, {64: 1, 128: 1}, num=4)).verdict == "inconclusive"


def test_a_dip_ends_the_effective_length_whatever_comes_after(sample, trace):
    assert effective_length(read(sample, trace, {64: 1, 128: 0.5, 256: 1})).measured.value == 64


@pytest.mark.parametrize(("right", "reaches"), [(17, 0), (18, 64)])
def test_the_threshold_is_rulers_unless_another_is_given(sample, trace, right, reaches):
    # 17 of 20 is 85.0 %, 18 of 20 is 90.0 %; RULER's line is 85.6 %.
    traces = read(sample, trace, {64: right / 20}, num=20)
    assert effective_length(traces).measured.value == reaches
    assert effective_length(traces, threshold=0.8).measured.value == 64


def test_intervals_by_length_are_clopper_pearson(sample, trace):
    rows = effective_length(read(sample, trace, {64: 0.65}, num=20)).records()
    exact = stats.binomtest(13, 20).proportion_ci(method="exact")
    assert rows[0]["accuracy_low"] == pytest.approx(exact.low, rel=1e-3)
    assert rows[0]["accuracy_high"] == pytest.approx(exact.high, rel=1e-3)


def test_the_interval_of_the_length_follows_the_counts(sample, trace):
    finding = effective_length(read(sample, trace, {64: 1, 128: 1, 256: 1, 512: 0.75, 1024: 0}, num=20))
    # 20 of 20 reaches down to .832 < .856, 40 of 40 to .912; 15 of 20 up to .913 >= .856, 0 of 20 to .168.
    assert (finding.measured.interval.low, finding.measured.interval.high) == (128, 512)


def test_where_the_heads_look_is_followed_by_length(sample, trace, looking):
    traces = []
    for length, copies in ((64, 1.0), (512, 0.0)):
        for i in range(20):
            made = sample(i, length=length)
            traces.append(trace(made, correct=copies == 1, keys=looking(made, {(2, 1): copies}, seed=i)))
    finding = effective_length(traces)
    rows = {row["length_tokens"]: row["heads_at_source"] for row in finding.records()}
    assert rows[64] == 1.0
    assert rows[512] == 0.0
    assert any("(2, 1)" in note for note in finding.notes)
    assert "100 % of the time at 64 tokens" in finding.claim


def test_without_attention_it_still_answers_and_says_what_it_lacks(sample, trace):
    finding = effective_length(read(sample, trace, {64: 1, 128: 0}))
    assert finding.measured.value == 64
    assert any("top_keys was not captured" in note for note in finding.notes)
    assert any("guessing cannot be told" in note for note in finding.notes)


def test_nothing_to_judge_measures_nothing(sample, trace):
    finding = effective_length([trace(sample(0), failed="no memory")])
    assert finding.measured.value is None
    assert finding.measured.dropped == 1


def test_reading_the_baseline_twice_adds_no_prompt(sample, trace):
    traces = read(sample, trace, {64: 1, 128: 0.5})
    assert effective_length([*traces, *traces]) == effective_length(traces)


def test_figure_is_valid_plotly(sample, trace):
    for figure in effective_length(diagnosis(sample, trace, {64: 1, 128: 0.5})).figures:
        go.Figure(figure.plotly)


@pytest.mark.parametrize("threshold", [0, 1.2])
def test_a_bad_threshold_is_refused(threshold):
    with pytest.raises(UsageError, match="threshold"):
        effective_length([], threshold=threshold)


def test_the_order_of_traces_changes_nothing(sample, trace):
    traces = diagnosis(sample, trace, {64: 1, 128: 0.5})
    order = np.random.default_rng(0).permutation(len(traces))
    assert effective_length([traces[i] for i in order]) == effective_length(traces)


def test_tasks_have_a_length_each_and_ruler_s_is_that_of_their_mean(sample, trace):
    def asked(task, rates):
        traces = read(sample, trace, rates)
        for each in traces:
            each.sample.facts["task"] = task
            each.sample = type(each.sample)(**{**vars(each.sample), "name": f"{task}-{each.sample.name}"})
        return traces

    easy, hard = asked("easy", {64: 1, 128: 1, 256: 1}), asked("hard", {64: 1, 128: 0.8, 256: 0.5})
    finding = effective_length([*easy, *hard])
    lengths = {each.name: each.value for each in finding.details if each.unit == "tokens"}
    # At 128 tokens the mean is 90 %, at 256 it is 75 %.
    assert lengths == {
        "effective length of easy": 256,
        "effective length of hard": 64,
        "effective length of the mean over 2 tasks": 128,
    }
    assert finding.measured.value == 128
    assert "by task, at 85.6 %: easy 256, hard 64, the mean over 2 tasks 128 tokens." in finding.claim
    lower = effective_length([*easy, *hard], threshold=0.75)
    assert {each.name: each.value for each in lower.details if each.unit == "tokens"}["effective length of hard"] == 128
    assert [row["num_right"] for row in finding.records() if row["condition"] == "baseline, hard"] == [40, 32, 20]
    assert "by task" not in effective_length(easy).claim
