"""Every condition against doing nothing: numbers by other means, and what is said of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

from probe.analyses.compare_conditions import compare_conditions
from probe.errors import UsageError
from probe.withheld import Withheld
from tests.analyses.conftest import StandIn, make_sample, make_trace
from tests.analyses.paired_statistics import adjusted, bca, mcnemar, paired_shares, sign_flips

SCALE = {"scale": {"factor": 2.0}}


def read(
    condition: str,
    right: Sequence[bool],
    losses: Sequence[float] | None = None,
    *,
    intervention: Mapping[str, Any] | None = None,
    role: str = "treatment",
    stage: str = "test",
    samples: Sequence[Any] | None = None,
    cost: Mapping[str, Any] | None = None,
    workload: Mapping[str, Any] | None = None,
    draw: int | None = None,
    **outcome: Any,
) -> list[StandIn]:
    """Prompts 0, 1, … under one condition."""
    made = []
    for i, correct in enumerate(right):
        sample = make_sample(i) if samples is None else samples[i]
        loss = 1.0 if losses is None else losses[i]
        trace = make_trace(
            sample, correct=correct, loss=loss, role=role, intervention=intervention, draw=draw, **outcome
        )
        trace.condition, trace.stage = condition, stage
        trace.unit = f"{stage}-{condition}-{draw}-{sample.name}"
        trace.facts = {**trace.facts, "workload": dict(workload or {})}
        trace.cost = cost  # type: ignore[attr-defined]
        made.append(trace)
    return made


def nothing(right: Sequence[bool], losses: Sequence[float] | None = None, **options: Any) -> list[StandIn]:
    return read("baseline", right, losses, role="baseline", **options)


def row(finding: Any, condition: str, **where: Any) -> dict[str, Any]:
    (found,) = [
        each
        for each in finding.records()
        if each["condition"] == condition and all(each[k] == where.get(k) for k in ("length", "depth"))
    ]
    return found


def drawn(rate: float, number: int, seed: int) -> list[bool]:
    return [bool(x) for x in np.random.default_rng(seed).random(number) < rate]


@pytest.mark.parametrize("seed", range(4))
def test_right_answers_are_tested_and_bounded_exactly(seed: int) -> None:
    before = drawn(0.5, 40, seed)
    conditions = {f"c{i}": drawn(rate, 40, 100 + 10 * seed + i) for i, rate in enumerate((0.95, 0.5, 0.1, 0.6))}
    traces = nothing(before)
    for name, after in conditions.items():
        traces += read(name, after, intervention=SCALE)
    finding = compare_conditions(traces)
    tests = {}
    for name, after in conditions.items():
        pairs = list(zip(after, before, strict=True))
        both, neither = pairs.count((True, True)), pairs.count((False, False))
        gained, lost = pairs.count((True, False)), pairs.count((False, True))
        tests[name] = mcnemar(gained, lost)
        low, high = paired_shares(both, gained, lost, neither)
        found = row(finding, name)
        assert found["difference"] == pytest.approx(100 * (sum(after) - sum(before)) / 40)
        assert (found["difference_low"], found["difference_high"]) == pytest.approx((100 * low, 100 * high), abs=0.02)
    for name, q in zip(tests, adjusted(list(tests.values())), strict=True):
        assert row(finding, name)["q_value"] == pytest.approx(q, rel=1e-3)


def test_losses_are_tested_over_all_signs_and_bounded_by_resampling_prompts() -> None:
    generator = np.random.default_rng(5)
    before = generator.gamma(2.0, 0.5, 11)
    after = {"a": before - generator.gamma(2.0, 0.2, 11), "b": before + 0.1 * generator.standard_normal(11)}
    traces = nothing([False] * 11, before.tolist())
    for name, losses in after.items():
        traces += read(name, [False] * 11, losses.tolist(), intervention=SCALE)
    finding = compare_conditions(traces, by="answer_loss")
    differences = {name: (losses - before).tolist() for name, losses in after.items()}
    q = adjusted([sign_flips(each) for each in differences.values()])
    for (name, each), expected in zip(differences.items(), q, strict=True):
        found = row(finding, name)
        assert found["answer_loss_difference"] == pytest.approx(float(np.mean(each)), rel=1e-3)
        assert found["loss_q_value"] == pytest.approx(expected, rel=1e-3)
        low, high = bca(each)
        assert (found["answer_loss_low"], found["answer_loss_high"]) == pytest.approx(
            (low, high), abs=0.05 * (high - low)
        )
    assert row(finding, "a")["verdict"] == "helps"
    assert finding.verdict == "supported"


def test_what_helps_what_hurts_and_what_does_nothing_is_said_of_each() -> None:
    before = [i % 2 == 0 for i in range(200)]
    traces = [
        *nothing(before),
        *read("cure", [True] * 200, intervention=SCALE),
        *read("poison", [False] * 200, intervention=SCALE),
        *read("water", before, intervention=SCALE),
    ]
    finding = compare_conditions(traces)
    assert {name: row(finding, name)["verdict"] for name in ("cure", "poison", "water")} == {
        "cure": "helps", "poison": "hurts", "water": "no different",
    }  # fmt: skip
    assert finding.verdict == "supported"
    assert finding.headline == "cure helps"
    assert "1 hurts: poison (0 %, -50" in finding.claim
    assert "1 makes no difference: water" in finding.claim
    assert (finding.measured.value, finding.control.value) == (50, 50)
    assert finding.suggests[0].fields == {"factor": 2.0}


def test_none_helps_is_refuted_and_says_who_hurts() -> None:
    before = [i % 2 == 0 for i in range(200)]
    traces = [
        *nothing(before),
        *read("poison", [False] * 200, intervention=SCALE),
        *read("water", before, intervention=SCALE),
    ]
    finding = compare_conditions(traces)
    assert finding.verdict == "refuted"
    assert finding.headline == "None of these helps, 1 hurts"
    assert "hurts: poison" in finding.claim
    assert not finding.suggests


def test_with_nothing_to_gain_nothing_is_refuted() -> None:
    finding = compare_conditions([*nothing([True] * 200), *read("water", [True] * 200, intervention=SCALE)])
    assert finding.verdict == "inconclusive"
    assert "too little to gain" in finding.claim


def test_too_few_prompts_say_how_many_would_do() -> None:
    before = [i % 2 == 0 for i in range(20)]
    after = [i % 3 == 0 for i in range(20)]
    finding = compare_conditions([*nothing(before), *read("perhaps", after, intervention=SCALE)])
    assert finding.verdict == "inconclusive"
    ends = finding.measured.interval
    needed = math.ceil(20 * ((ends.high - ends.low) / 2 / 10) ** 2)
    assert f"about {needed} prompts would tell a difference of 10 points" in finding.claim


def test_four_prompts_settle_nothing() -> None:
    finding = compare_conditions([*nothing([False] * 4), *read("cure", [True] * 4, intervention=SCALE)])
    assert finding.verdict == "inconclusive"


def test_a_control_that_helps_supports_nothing_and_is_named() -> None:
    before = [i % 2 == 0 for i in range(60)]
    traces = [
        *nothing(before),
        *read("water", before, intervention=SCALE),
        *read("others", [True] * 60, intervention=SCALE, role="control"),
    ]
    finding = compare_conditions(traces)
    assert finding.verdict != "supported"
    assert any("A control helps too: others" in note for note in finding.notes)


def test_draws_of_a_control_are_averaged_by_prompt() -> None:
    before = [False] * 10
    draws = [[i < 4 * d for i in range(10)] for d in range(3)]
    traces = nothing(before)
    for d, right in enumerate(draws):
        traces += read("others", right, intervention=SCALE, role="control", draw=d)
    finding = compare_conditions(traces)
    means = np.mean(draws, axis=0) * 100
    found = row(finding, "others")
    assert found["num_prompts"] == 10
    assert found["difference"] == pytest.approx(means.mean(), rel=1e-3)
    assert found["q_value"] == pytest.approx(sign_flips(means.tolist()), rel=1e-3)
    assert any("mean over 3 draws" in note for note in finding.notes)


def test_what_cannot_be_paired_is_counted_and_named() -> None:
    traces = [*nothing([False] * 10), *read("cure", [True] * 12, intervention=SCALE)]
    finding = compare_conditions(traces)
    assert row(finding, "cure")["num_prompts"] == 10
    assert finding.measured.dropped == 2
    assert any("Of cure cannot be paired: needle-64-0.50-s10, needle-64-0.50-s11." in note for note in finding.notes)


def test_units_that_failed_are_counted_by_condition() -> None:
    traces = [*nothing([False] * 10), *read("cure", [True] * 10, intervention=SCALE)]
    traces[12].outcome = dataclasses.replace(traces[12].outcome, failed="out of memory")
    traces[3].outcome = dataclasses.replace(traces[3].outcome, answer_log_probability=(math.nan,))
    finding = compare_conditions(traces)
    assert row(finding, "cure")["num_prompts"] == 8
    assert any("1 × cure: the unit failed" in note for note in finding.notes)
    assert any("1 × baseline: the model's logits were not a number" in note for note in finding.notes)


def test_its_own_stages_baseline_comes_first_and_another_stages_fills_in() -> None:
    traces = [
        *nothing([True] * 10, stage="read"),
        *nothing([False] * 6, stage="test"),
        *read("cure", [True] * 10, intervention=SCALE, stage="test"),
    ]
    found = row(compare_conditions(traces), "cure")
    assert (found["num_prompts"], found["accuracy_without"]) == (10, 40)


def test_a_stage_without_a_baseline_is_held_against_an_earlier_stages() -> None:
    traces = [
        *nothing([False] * 10, stage="read"),
        *read("cure", [True] * 10, intervention=SCALE, stage="test"),
        *read("cure", [False] * 10, intervention=SCALE, stage="tune"),
    ]
    found = row(compare_conditions(traces, stage="test"), "cure")
    assert (found["num_prompts"], found["accuracy"], found["accuracy_without"]) == (10, 100, 0)


def test_a_condition_of_another_workload_is_held_against_the_same_prompts_without_it() -> None:
    longer = {"lengths": [128]}
    traces = [
        *nothing([True] * 8),
        *read("plain-long", [False] * 8, workload=longer, role="other"),
        *read("cure-long", [True] * 8, workload=longer, intervention=SCALE),
    ]
    assert row(compare_conditions(traces), "cure-long")["accuracy_without"] == 0


def test_a_condition_with_nothing_to_be_held_against_is_named() -> None:
    traces = [*nothing([True] * 8), *read("cure", [True] * 8, workload={"lengths": [9]}, intervention=SCALE)]
    finding = compare_conditions(traces)
    assert finding.measured.value is None
    assert any(note.startswith("cure has nothing to be held against") for note in finding.notes)


def test_two_baselines_must_be_chosen_between() -> None:
    traces = [
        *nothing([True] * 8),
        *read("another", [False] * 8, role="baseline"),
        *read("cure", [True] * 8, intervention=SCALE),
    ]
    with pytest.raises(UsageError, match="cure could be held against another and baseline"):
        compare_conditions(traces)
    assert row(compare_conditions(traces, baseline="another"), "cure")["accuracy_without"] == 0
    # A stage may not have been played: what is missing is said, and stops no run.
    finding = compare_conditions(traces, baseline="nobody")
    assert finding.measured.value is None
    assert "Of 'nobody', which `baseline` names, nothing was read." in finding.notes


def test_a_treatment_may_be_the_baseline_and_conditions_can_be_left_out() -> None:
    traces = [
        *nothing([True] * 8),
        *read("old", [False] * 8, intervention=SCALE),
        *read("new", [True] * 8, intervention={"scale": {"factor": 3.0}}),
    ]
    finding = compare_conditions(traces, baseline="old")
    assert {each["condition"] for each in finding.records()} == {"new"}
    assert row(finding, "new")["accuracy_without"] == 0
    assert {each["condition"] for each in compare_conditions(traces, leave_out=["old"]).records()} == {"new"}
    finding = compare_conditions(traces, leave_out=["odl"])
    assert "Of 'odl', which `leave_out` names, nothing was read." in finding.notes


def test_a_half_and_a_stage_can_be_chosen() -> None:
    samples = [make_sample(i, half=("find", "test")[i % 2]) for i in range(12)]
    right = [i % 2 == 0 for i in range(12)]
    traces = [*nothing([False] * 12, samples=samples), *read("cure", right, samples=samples, intervention=SCALE)]
    assert row(compare_conditions(traces, half="find"), "cure")["accuracy"] == 100
    assert row(compare_conditions(traces, half="test"), "cure")["accuracy"] == 0
    two = [*traces, *read("cure", right, samples=samples, intervention=SCALE, stage="later")]
    assert {each["condition"] for each in compare_conditions(two).records()} == {"test/cure", "later/cure"}
    assert {each["condition"] for each in compare_conditions(two, stage="test").records()} == {"cure"}
    never = compare_conditions(two, stage="never")
    assert never.verdict == "inconclusive"
    assert any("no stage 'never'; there are later, test" in note for note in never.notes)


def test_lengths_and_depths_have_rows_of_their_own() -> None:
    samples = [make_sample(i, length=(64, 128)[i % 2], depth=(0.0, 0.5, 1.0)[i % 3]) for i in range(36)]
    right = [sample.facts["length"] == 64 or sample.facts["needle_depth"] == 1.0 for sample in samples]
    traces = [*nothing([False] * 36, samples=samples), *read("cure", right, samples=samples, intervention=SCALE)]
    finding = compare_conditions(traces)
    assert [row(finding, "cure", length=at)["difference"] for at in (64, 128)] == pytest.approx(
        [100, 100 / 3], rel=1e-3
    )
    assert [row(finding, "cure", depth=at)["num_prompts"] for at in (0.0, 0.5, 1.0)] == [12, 12, 12]
    assert [figure.name for figure in finding.figures][-3:] == [
        "conditions_by_length",
        "conditions_by_depth",
        "conditions_by_length_and_depth",
    ]
    cells = finding.figures[-3].plotly["data"][0]
    assert (cells["y"], cells["z"]) == (["cure", "nothing"], [[1.0, 0.333], [0.0, 0.0]])
    for figure in finding.figures:
        go.Figure(figure.plotly)


def cost(seconds: float, peak: float) -> dict[str, Any]:
    return {"seconds": seconds, "peak_bytes": peak, "memory": "resident in the process"}


def detail(finding: Any, name: str) -> Any:
    (found,) = [each for each in finding.details if name in each.name]
    return found


def test_what_it_cost_is_said_where_both_were_read_alike() -> None:
    traces = [
        *nothing([False] * 8, cost=cost(2.0, 5e8)),
        *read("slow", [True] * 8, intervention=SCALE, cost=cost(3.0, 6e8)),
        *read("unknown", [True] * 8, intervention=SCALE),
    ]
    finding = compare_conditions(traces)
    found = row(finding, "slow")
    assert [found[key] for key in ("seconds", "seconds_without", "peak_mb", "peak_mb_without")] == [3, 2, 600, 500]
    assert detail(finding, "slow: time of reading").value == 1.5
    assert detail(finding, "slow: largest memory").value == pytest.approx(100)
    assert any("What reading took cannot be compared for unknown" in note for note in finding.notes)
    # Capturing takes time of its own.
    for trace in traces[:8]:
        trace.dataset = xr.Dataset({"entropy": (("layer", "head", "query"), np.zeros((1, 1, 4)))})
    assert row(compare_conditions(traces), "slow")["seconds"] is None


def test_the_texts_own_loss_counts_where_the_prompt_stayed_the_same() -> None:
    rewritten = [dataclasses.replace(make_sample(i), tokens=(7, *make_sample(i).tokens)) for i in range(8)]
    traces = [
        *nothing([False] * 8, text_loss=2.0),
        *read("louder", [True] * 8, intervention=SCALE, text_loss=2.5),
        *read("longer", [True] * 8, intervention=SCALE, samples=rewritten, text_loss=9.0),
    ]
    finding = compare_conditions(traces)
    assert detail(finding, "louder: loss of the prompt's own text").value == 0.5
    assert row(finding, "longer")["text_loss_difference"] is None
    assert any("own loss cannot be compared for longer" in note for note in finding.notes)


def test_of_withheld_tokens_nobody_knows_whether_the_text_is_the_same() -> None:
    private = [dataclasses.replace(make_sample(i), tokens=Withheld.of(64)) for i in range(8)]
    traces = [
        *nothing([False] * 8, samples=private),
        *read("cure", [True] * 8, intervention=SCALE, samples=private),
    ]
    finding = compare_conditions(traces)
    assert row(finding, "cure")["text_loss_difference"] is None
    assert row(finding, "cure")["difference"] == 100


def test_ordinary_text_is_another_workload_under_the_same_intervention() -> None:
    plain = {"needle": "absent"}
    texts = [dataclasses.replace(make_sample(i), name=f"plain-{i}") for i in range(6)]
    options = {"workload": plain, "samples": texts}
    traces = [
        *nothing([False] * 8),
        *read("cure", [True] * 8, intervention=SCALE),
        *read("plain", [None] * 6, role="other", text_loss=3.0, **options),  # type: ignore[list-item]
        *read("plain-cure", [None] * 6, role="other", text_loss=3.4, intervention=SCALE, **options),  # type: ignore[list-item]
    ]
    finding = compare_conditions(traces)
    assert {each["condition"] for each in finding.records()} == {"cure"}
    assert detail(finding, "cure: loss of ordinary text").value == pytest.approx(0.4)
    assert detail(finding, "cure: loss of ordinary text").n == 6


@pytest.mark.parametrize("role", ["other", "needle_absent"])
def test_text_without_its_answer_is_ordinary_text_where_it_is_said_to_be(role: str) -> None:
    plain = {"needle": "absent"}
    traces = [
        *nothing([False] * 8),
        *read("cure", [True] * 8, intervention=SCALE),
        *read("text", [False] * 8, role=role, text_loss=3.0, workload=plain),
        *read("text-cure", [False] * 8, role=role, text_loss=3.4, workload=plain, intervention=SCALE),
    ]
    named = {"text": ["text", "text-cure"]} if role == "other" else {}
    finding = compare_conditions(traces, **named)
    assert {each["condition"] for each in finding.records()} == {"cure"}
    assert detail(finding, "cure: loss of ordinary text").value == pytest.approx(0.4)
    assert "Of 'txt', which `text` names, nothing was read." in compare_conditions(traces, text=["txt"]).notes


def test_what_became_of_attention_is_said_where_it_was_captured() -> None:
    traces = [*nothing([False] * 6), *read("cure", [True] * 6, intervention=SCALE)]
    for i, trace in enumerate(traces):
        level = 0.2 if i < 6 else 0.6
        mass = np.full((2, 3, 4, 2), level)
        mass[0, 1] += 0.1
        trace.dataset = xr.Dataset(
            {
                "span_mass": (("layer", "head", "row", "span"), mass),
                "entropy": (("layer", "head", "query"), np.full((2, 3, 9), 3.0 - level)),
                "sink_mass": (("layer", "head", "query"), np.full((2, 3, 9), level / 2)),
            },
            coords={"span": ["needle", "question"]},
        )
    finding = compare_conditions(traces)
    assert detail(finding, "mean over heads (without: 0.217)").value == pytest.approx(0.4)
    assert detail(finding, "of the head that gives it most (without: 0.3)").value == pytest.approx(0.4)
    assert detail(finding, "first four tokens").value == pytest.approx(0.2)
    assert detail(finding, "entropy of attention").value == pytest.approx(-0.4)


def test_several_interventions_are_named_in_their_order() -> None:
    both = {"together": {"interventions": [{"temperature": {"tau": 0.5}}, {"ablate_heads": {"heads": [[1, 2]]}}]}}
    finding = compare_conditions([*nothing([False] * 8), *read("both", [True] * 8, intervention=both)])
    assert "both (treatment): temperature (tau 0.5), then ablate_heads (heads [[1, 2]])." in finding.notes
    assert finding.suggests[0].intervention == "together"


def test_a_margin_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="margin is above 0"):
        compare_conditions([], margin=0.0)


def test_a_headline_names_the_best_and_counts_what_hurts() -> None:
    before = [i % 2 == 0 for i in range(200)]
    cures = [read(f"cure-{i}", [True] * (200 - 5 * i) + before[200 - 5 * i :], intervention=SCALE) for i in range(4)]
    helped = compare_conditions([*nothing(before), *(trace for cure in cures for trace in cure)])
    assert helped.headline == "cure-0 and 3 others help"
    right = [True] * 200
    worse = [trace for i in range(3) for trace in read(f"poison-{i}", [False] * 200, intervention=SCALE)]
    assert compare_conditions([*nothing(right), *worse]).headline.endswith("cannot be told, 3 hurt")
