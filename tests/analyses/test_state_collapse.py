"""State collapse: the ratio, the onset, the tests and the verdicts, against numbers worked out apart from the code."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

import probe
from probe.finding import Finding
from tests.effects.state_collapse import TRAINED, TRUTH, texts

LOOSE = {"rel": 1e-4, "abs": 1e-12}


def named(finding: Finding, beginning: str):
    (detail,) = [each for each in finding.details if each.name.startswith(beginning)]
    return detail


def with_states(traces, change):
    """The traces with another variance: `change(variance, tokens)`."""
    for trace in traces:
        if "state_variance_every_16" in trace:
            array = trace.dataset["state_variance_every_16"]
            values = change(array.to_numpy().copy(), array["position"].to_numpy() + 1)
            trace.dataset["state_variance_every_16"] = (array.dims, values)
    return traces


def test_a_collapse_is_what_was_planted():
    traces = texts(4.0, 0.2, 0.0, seed=3)
    finding = probe.state_collapse(traces[::-1])
    assert finding == probe.state_collapse(traces)
    assert finding.verdict == "supported"
    rows = {(row["layer"], row["state_head"]): row for row in finding.records()}
    assert {head for head, row in rows.items() if row["explodes"]} == TRUTH

    # Every number again, from the arrays: twice 64 tokens is the eighth reading, up to 64 are four.
    baseline = [trace for trace in traces if trace.facts["role"] == "baseline"]
    variance = np.array([trace["state_variance_every_16"].to_numpy() for trace in baseline])
    log_ratio = np.log(variance[..., 7] / variance[..., :4].max(-1))
    for head, row in rows.items():
        assert row["ratio_at_twice"] == pytest.approx(math.exp(log_ratio[(..., *head)].mean()), **LOOSE)
        one = variance[:, head[0], head[1]]
        ends = np.log(one[:, -1] / one[:, :4].max(-1))
        assert row["ratio_at_end"] == pytest.approx(math.exp(ends.mean()), **LOOSE)
    # The second half of what lies beyond: from (64 + 256) / 2 tokens on.
    at = np.arange(160, 257, 16) / TRAINED
    slopes = np.array([[np.polyfit(at, np.log(one[-7:]), 1)[0] for one in text.reshape(8, -1)] for text in variance])
    larger = [
        max(
            stats.ttest_1samp(log_ratio.reshape(40, 8)[:, i], math.log(2), alternative="greater").pvalue,
            stats.ttest_1samp(slopes[:, i], 0, alternative="greater").pvalue,
        )
        for i in range(8)
    ]
    order = np.argsort(larger)
    adjusted = np.minimum.accumulate((np.array(larger)[order] * 8 / np.arange(1, 9))[::-1])[::-1]
    for place, index in enumerate(order):
        row = rows[(index // 4, index % 4)]
        assert row["q"] == pytest.approx(min(adjusted[place], 1), **LOOSE)
        assert row["slope"] == pytest.approx(slopes[:, index].mean(), **LOOSE)

    # The head is chosen on one half and measured on the other.
    find = np.array([trace.sample.facts["half"] == "find" for trace in baseline])
    chosen = log_ratio.reshape(40, 8)[find].mean(0).argmax()
    assert finding.measured.value == pytest.approx(math.exp(log_ratio.reshape(40, 8)[~find, chosen].mean()), **LOOSE)
    assert finding.measured.n == 20
    assert finding.measured.interval.low < finding.measured.value < finding.measured.interval.high
    staying = [i for i in range(8) if (i // 4, i % 4) not in TRUTH]
    middle = np.median(log_ratio.reshape(40, 8)[~find][:, staying].mean(0))
    assert finding.control.value == pytest.approx(math.exp(middle), **LOOSE)

    # Recent answers, pair by pair.
    alone = {trace.sample.name: trace.outcome.correct for trace in traces if trace.facts["role"] == "gold_only"}
    young = [trace for trace in baseline if trace.sample.facts["needle_depth"] > 0.5]
    only = sum(alone[trace.sample.name] and not trace.outcome.correct for trace in young)
    assert finding.comparison.p_value == pytest.approx(min(1, 2 * 0.5**only))
    assert finding.comparison.difference == pytest.approx(-only / 30)
    assert named(finding, "recent answers right at 256").n == 30
    assert named(finding, "older answers right at 256").n == 10
    assert (named(finding, "critical length").value, named(finding, "critical length").n) == (256, 30)


def test_the_onset_is_where_the_ratio_passes_the_threshold_for_good():
    def planted(variance, tokens):
        variance[:] = 1.0
        # Above the threshold for a moment within, then for good from the tenth reading (160 tokens) on.
        variance[0, 0, 5] = 3.0
        variance[0, 0, 9:] = 2.5 + np.arange(7)
        return variance

    finding = probe.state_collapse(with_states(texts(1.0, 0.0, 0.0, seed=0), planted))
    onset = named(finding, "onset")
    assert (onset.value, onset.interval.low, onset.interval.high) == (160, 160, 160)
    assert finding.records()[0]["onset_tokens"] == 160
    assert finding.records()[1]["onset_tokens"] is None


def test_growth_that_has_come_to_an_end_is_no_explosion():
    def planted(variance, tokens):
        variance[0, 0] = np.where(tokens > TRAINED, 5.0, 1.0)
        return variance

    finding = probe.state_collapse(with_states(texts(1.0, 0.0, 0.0, seed=0), planted))
    assert finding.records()[0]["ratio_at_twice"] == pytest.approx(5)
    assert not finding.records()[0]["explodes"]
    assert finding.verdict == "inconclusive"
    assert "No head certainly explodes" in finding.notes[0]


@pytest.mark.parametrize(
    ("made", "verdict", "headline"),
    [
        ((4.0, 1.0, 1.0, 1.0), "refuted", "The state drifts, and what is recent is still recalled"),
        ((1.0, 1.0, 0.0, 1.0), "refuted", "The state forgets, and does not collapse"),
        ((1.0, 1.0, 1.0, 1.0), "refuted", "The state does not collapse"),
        ((1.0, 0.0, 0.0, 1.0), "refuted", "The state stays in its trained range"),
        ((4.0, 1.0, 1.0, 0.0), "inconclusive", "Whether the state collapses cannot be told"),
    ],
)
def test_drift_forgetting_and_failure_in_range_are_told_from_collapse(made, verdict, headline):
    growth, recent, old, alone = made
    traces = texts(growth, recent, old, seed=1, alone=alone)
    # Forty recent answers without a fall are enough to say so.
    more = [t for t in texts(growth, recent, old, seed=2, alone=alone) if t.sample.facts["needle_depth"] > 0.5]
    for trace in more:
        trace.sample = dataclasses.replace(trace.sample, name=f"{trace.sample.name}-more")
    finding = probe.state_collapse([*traces, *more])
    assert (finding.verdict, finding.headline) == (verdict, headline), finding.claim
    if not alone:
        assert any("cannot be shown to recall" in note for note in finding.notes)


def test_without_the_ends_alone_short_texts_are_the_control(sample, trace):
    long = [each for each in texts(4.0, 0.0, 0.0, seed=0, alone=1.0) if each.facts["role"] == "baseline"]
    short = [trace(sample(i, length=TRAINED, depth=0.5), correct=i > 0) for i in range(20)]
    for each in short:
        each.provenance = long[0].provenance
    finding = probe.state_collapse([*long, *short])
    assert finding.verdict == "supported"
    assert finding.comparison.name.endswith("Fisher's exact test")
    assert finding.comparison.difference == pytest.approx(-19 / 20)
    assert finding.comparison.p_value == pytest.approx(stats.fisher_exact([[19, 1], [0, 30]]).pvalue)
    assert "Left out: 20 × no state of a recurrent layer was captured." in finding.notes


def test_where_nothing_is_asked_it_is_the_loss_that_rises_or_not():
    for rise, verdict in ((0.5, "supported"), (0.0, "refuted")):
        generator, traces = np.random.default_rng(0), []
        for each in texts(4.0, 1.0, 1.0, seed=0):
            if each.facts["role"] == "baseline":
                each.outcome = dataclasses.replace(each.outcome, correct=None)
                level = np.where(np.arange(256) >= 2 * TRAINED, 2.0 + rise, 2.0)
                level[0] = np.nan
                each.dataset["loss"] = (("token",), level + 0.1 * generator.standard_normal())
                traces.append(each)
        finding = probe.state_collapse(traces)
        assert finding.verdict == verdict
        assert finding.comparison.difference == pytest.approx(rise, abs=1e-9)
        assert named(finding, "rise of loss").n == 40


def test_what_is_missing_is_said():
    def told(traces, beginning, **parameters):
        finding = probe.state_collapse(traces, **parameters)
        assert finding.verdict == "inconclusive"
        assert finding.measured.value is None
        assert beginning in finding.claim

    traces = texts(4.0, 0.0, 0.0, seed=0)
    for trace in traces:
        trace.provenance = {**trace.provenance, "positions": {"layers": {}, "training_length": None}}
    told(traces, "give `trained`")
    assert probe.state_collapse(traces, trained=TRAINED).verdict == "supported"
    told(traces, "texts of 400 tokens or more", trained=200)
    for trace in traces:
        trace.dataset = trace.dataset.drop_vars(list(trace.dataset.data_vars))
    told(traces, "no state of its recurrent layers was captured")
    for trace in traces:
        trace.provenance = {"recurrent_layers": {}}
    told(traces, "needs a recurrent model or a hybrid")
    told([], "nothing was read")


def test_few_texts_and_states_that_are_no_numbers_tell_nothing():
    traces = texts(4.0, 0.0, 0.0, seed=0)
    few = probe.state_collapse(traces[:8])
    assert few.verdict == "inconclusive"
    assert "At least 5 texts" in few.notes[0]

    def overflowing(variance, tokens):
        variance[0, 0, -1] = np.inf
        return variance

    odd = with_states(texts(4.0, 0.0, 0.0, seed=1)[:1], overflowing)
    odd[0].sample = dataclasses.replace(odd[0].sample, name="odd")
    finding = probe.state_collapse(traces + odd)
    assert "Left out: 1 × its state is not finite." in finding.notes


def test_attention_beside_the_recurrence_is_said():
    traces = texts(4.0, 0.0, 0.0, seed=0)
    for trace in traces[::2]:
        positions = {**trace.provenance["positions"], "layers": {"1": {"kind": "rotary"}}}
        trace.provenance = {**trace.provenance, "positions": positions}
    assert any("Attention layers saw" in note for note in probe.state_collapse(traces).notes)


def test_it_captures_states_at_the_interval_asked_for_and_nothing_of_a_transformer():
    assert probe.state_collapse.needs(every=16)["state_max"] == {"every": 16}
    assert "effective_distance" in probe.state_collapse.needs()
    assert "effective_distance" not in probe.state_collapse.needs(reach=False)
    assert probe.state_collapse.about_recurrence


def test_heads_that_explode_are_to_forget_within_the_training_length():
    traces = texts(4.0, 0.0, 0.0, seed=0)
    assert probe.state_collapse(traces).suggests == ()
    for trace in traces[::2]:
        # 64 tokens of .999 leave .938 of a state; to the power of 15.6 they leave 1/e.
        trace.dataset["decay"] = (("layer", "state_head", "token"), np.full((2, 4, 256), 0.999))
    (suggestion,) = probe.state_collapse(traces).suggests
    assert suggestion.intervention == "forget_faster"
    assert suggestion.fields["heads"] == [[0, 0], [0, 2], [1, 3]]
    for factor in suggestion.fields["factors"]:
        assert 0.999 ** (factor * TRAINED) == pytest.approx(math.exp(-1), rel=1e-2)
    for trace in traces[::2]:
        trace.provenance = {**trace.provenance, "recurrent_layers": {"rwkv4": [0, 1]}}
    assert probe.state_collapse(traces).suggests == ()
