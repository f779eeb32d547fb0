from __future__ import annotations

import math

import numpy as np
import pytest

from probe.analyses.context_use import context_use
from probe.analyses.measures.context_losses import read_losses
from probe.errors import UsageError
from probe.selection import LeftOut
from tests.effects.context_use import LENGTHS, NEAR, NUM_PROMPTS, TARGETS, null_length, planted, stretch, stretches


def exact(losses):
    """Prompts whose losses are given by distant part, length and prompt, without noise."""
    return [
        stretch(prompt, length, distant, np.array(losses(distant, length, prompt)))
        for prompt in range(8)
        for length in LENGTHS
        for distant in ("kept", "shuffled")
    ]


def test_the_gain_is_the_mean_over_prompts_of_the_paired_difference():
    def losses(distant, length, prompt):
        far = length > NEAR + 1 and distant == "kept"
        return [4.0 + 0.1 * at - far * 0.01 * (prompt + 1) for at in range(4)]

    finding = context_use(exact(losses))
    assert finding.measured.value == pytest.approx(np.mean([0.01 * p for p in range(1, 9)]))
    assert finding.control.value == pytest.approx(0.0, abs=1e-12)
    assert finding.comparison.difference == pytest.approx(finding.measured.value)
    # All eight differences are positive: both of 2^8 sign patterns that go as far.
    assert finding.comparison.p_value == pytest.approx(2 / 256)
    assert finding.measured.n == 8
    assert finding.verdict == "supported"


def test_each_kind_of_token_has_its_own_gain():
    def losses(distant, length, prompt):
        far = length > NEAR + 1 and distant == "kept"
        # Of the due tokens every third, from the second after the first, was seen last far back.
        return [5.0 - far * (0.5 if at % 3 == 2 else 0.0) for at in range(TARGETS)]

    gains = [row for row in context_use(exact(losses)).records() if row["quantity"] == "gain"]
    rows = {row["kind"]: row for row in gains if row["distant"] == "kept"}
    assert all(row["nats"] == pytest.approx(0.0) for row in gains if row["distant"] == "shuffled")
    kept = {kind: row["nats"] for kind, row in rows.items()}
    assert kept["last seen far"] == pytest.approx(0.5)
    assert kept["last seen near"] == kept["never seen"] == pytest.approx(0.0)
    even = [at % 3 == 2 for at in range(0, TARGETS, 2)]
    assert kept["frequent"] == pytest.approx(0.5 * np.mean(even))
    assert rows["never seen"]["num_tokens"] == 8 * len(range(0, TARGETS, 3))


def test_a_token_that_stood_last_within_reach_of_the_near_part_is_near():
    seen = [NEAR, NEAR + 1, NEAR + 1, NEAR + 3, None]
    trace = stretch(0, 512, "kept", np.ones(5), target_last_seen=seen)
    other = stretch(0, 512, "shuffled", np.ones(5))
    kinds = read_losses([trace, other], LeftOut()).kinds["0/0"]
    # The second due token has one more token between it and what is far, the fourth three.
    assert kinds["last seen near"].tolist() == [True, True, True, True, False]
    seen[3] = NEAR + 4
    moved = stretch(0, 512, "kept", np.ones(5), target_last_seen=seen)
    assert read_losses([moved, other], LeftOut()).kinds["0/0"]["last seen far"].tolist() == [False] * 3 + [True, False]


@pytest.mark.parametrize(("fall", "reach"), [({}, 64), ({129: 0.5}, 129), ({129: 0.5, 512: 0.03}, 512)])
def test_the_effective_context_is_where_no_longer_prefix_helps_by_more_than_the_margin(fall, reach):
    def losses(distant, length, prompt):
        return [6.0 - sum(by for at, by in fall.items() if length >= at)] * 3

    finding = context_use(exact(losses), margin=0.02)
    (found,) = [each for each in finding.details if each.name == "effective context"]
    assert (found.value, found.interval.low, found.interval.high) == (reach, reach, reach)


def test_many_small_steps_add_up_to_more_than_the_margin():
    finding = context_use(exact(lambda distant, length, prompt: [6.0 - 0.015 * LENGTHS.index(length)] * 3))
    # 0.045 from the first to the last, 0.03 from the second, 0.015 from the third.
    assert [each.value for each in finding.details if each.name == "effective context"] == [256]


def test_a_longer_prefix_that_helps_shuffled_as_well_is_not_taken_for_use():
    finding = context_use(null_length(3))
    assert finding.verdict == "inconclusive"
    assert finding.measured.interval.low > 0.02
    assert any("which words occur" in note for note in finding.notes)


def test_no_gain_is_refuted_against_the_margin_and_too_few_prompts_say_how_many_would_do():
    finding = context_use(stretches(0, 0.0, 0.0, noise=0.05))
    assert finding.verdict == "refuted"
    assert finding.measured.interval.high < 0.02
    unsure = context_use(stretches(0, 0.0, 0.0, noise=1.0))
    assert unsure.verdict == "inconclusive"
    assert any("prompts would tell" in note for note in unsure.notes)
    few = context_use([trace for trace in planted(0.3, 0) if trace.sample.facts["seed"] < 3])
    assert few.verdict == "inconclusive"
    assert any("At least 5 prompts" in note for note in few.notes)


def test_the_loss_along_the_prompt_is_in_bins_that_double():
    rows = [row for row in context_use(planted(0.1, 0)).records() if row["quantity"] == "loss along the prompt"]
    assert [row["prefix_tokens"] for row in rows] == [2**at for at in range(9)]
    assert rows[3]["nats"] == pytest.approx(3.0 + 0.01 * (NUM_PROMPTS - 1) / 2)


def test_what_it_cannot_use_is_counted_and_what_is_missing_is_said():
    traces = planted(0.2, 1)
    treated = stretch(0, 512, "kept", np.full(TARGETS, 99.0))
    treated.facts = {**treated.facts, "intervention": {"ablate_heads": {}}}
    moved = stretch(1, 512, "kept", np.full(TARGETS, 99.0), first_token="moved")
    broken = stretch(2, 512, "kept", np.array([1.0, math.nan]))
    for other in (treated, moved, broken):
        other.condition = other.unit = "another"
    finding = context_use([*traces, treated, moved, broken])
    assert finding.measured.value == context_use(traces).measured.value
    assert finding.measured.dropped == 3
    kept = [trace for trace in traces if trace.sample.facts["distant"] == "kept"]
    for some, words in (
        (kept, "a condition with `distant: shuffled` is needed"),
        ([trace for trace in traces if trace.sample.facts["length"] == 512], "prefixes of two lengths are needed"),
        ([stretch(0, n, d, np.ones(4), unknown_tokens=0.5) for n in LENGTHS for d in ("kept", "shuffled")], "50%"),
    ):
        unsaid = context_use(some)
        assert unsaid.verdict == "inconclusive"
        assert unsaid.measured.value is None
        assert words in unsaid.claim
    with pytest.raises(UsageError, match="margin 0"):
        context_use(traces, margin=0)


def test_a_private_trace_has_no_kinds_and_says_so():
    traces = planted(0.2, 1)
    for trace in traces:
        facts = {k: v for k, v in trace.sample.facts.items() if not k.startswith("target_")}
        trace.sample = type(trace.sample)(**{**vars(trace.sample), "facts": facts})
    finding = context_use(traces)
    assert finding.verdict == "supported"
    assert any("private" in note for note in finding.notes)


def test_disturbed_prompts_of_another_near_part_are_not_mixed_in():
    traces = planted(0.2, 1)
    other = []
    for trace in traces:
        losses = 1 - np.array(trace.outcome.answer_log_probability)
        facts = trace.sample.facts
        if facts["distant"] == "shuffled":
            disturbed = max(0, facts["length"] - 1 - 63)
            made = stretch(facts["seed"], facts["length"], "shuffled", losses, near=63, disturbed_tokens=disturbed)
            made.condition = made.unit = f"nearer-{made.sample.name}"
            other.append(made)
    both = context_use([*traces, *other])
    assert both.control == context_use(traces).control
    assert both.measured.dropped == len(other)
    nearer = context_use([*traces, *other], near=63)
    # The whole of the near part alone is now the prompt of 64 tokens, and a disturbed one costs a nat.
    assert nearer.measured.name == "gain of 512 tokens over 64"
    assert nearer.control.value == pytest.approx(context_use(traces).control.value - 1, abs=0.1)
    assert context_use(traces, near=5).measured.value is None


def test_the_other_control_is_what_was_replaced():
    traces = planted(0.2, 1)
    replaced = [
        stretch(
            t.sample.facts["seed"], t.sample.facts["length"], "replaced", -np.array(t.outcome.answer_log_probability)
        )
        for t in traces
        if t.sample.facts["distant"] == "shuffled"
    ]
    finding = context_use([*traces, *replaced], control="replaced")
    assert "what is far replaced" in finding.claim
    assert {row["distant"] for row in finding.records()} == {"kept", "shuffled", "replaced"}
