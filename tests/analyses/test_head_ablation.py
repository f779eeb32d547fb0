from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest

from probe.analyses.head_ablation import head_ablation
from probe.errors import UsageError

REMOVED = {"ablate_heads": {"heads": [[2, 2], [2, 5]], "form": "zero", "phase": "both"}}


def experiment(sample, trace, *, baseline=1.0, treatment=0.0, control=1.0, num=30, draws=20, seed=0, base_loss=0.1):
    """Prompts under all three conditions, right with the given chances."""
    generator = np.random.default_rng(seed)
    traces = []
    for i in range(num):
        made = sample(i)

        def right(rate):
            return bool(generator.random() < rate)

        traces.append(trace(made, correct=right(baseline), loss=base_loss))
        traces.append(
            trace(
                made,
                correct=right(treatment),
                loss=base_loss + 4 * (1 - treatment),
                role="treatment",
                intervention=REMOVED,
            )
        )
        for draw in range(draws):
            traces.append(trace(made, correct=right(control), loss=base_loss, role="control", draw=draw))
    return traces


def test_heads_that_carry_the_answer_are_shown_to(sample, trace):
    finding = head_ablation(experiment(sample, trace))
    assert finding.verdict == "supported"
    assert finding.measured.value == 0
    assert finding.control.value == 100
    assert finding.comparison.difference == -100
    # All 30 prompts agree: 1 - q with q = 0.025 ** (1 / 30) of them may differ, by the whole range.
    q = 0.025 ** (1 / 30)
    assert finding.comparison.interval.high == pytest.approx(-100 + 200 * (1 - q))
    assert finding.comparison.p_value < 0.001
    assert "(2, 2), (2, 5)" in finding.claim
    assert "from 100 % to 0 %" in finding.claim
    assert any("form zero, phase both" in note for note in finding.notes)
    loss = next(m for m in finding.details if "loss of the right answer" in m.name)
    assert loss.value == pytest.approx(4.0)


def test_the_paired_test_against_the_untouched_model_is_mcnemars(sample, trace):
    finding = head_ablation(experiment(sample, trace, num=12))
    # 12 pairs all one way: 2 / 2 ** 12.
    assert any("p = 0.00049, n = 12" in note for note in finding.notes)


@pytest.mark.parametrize("seed", range(6))
def test_heads_like_any_others_are_not_blamed(sample, trace, seed):
    finding = head_ablation(experiment(sample, trace, treatment=0.8, control=0.8, seed=seed))
    assert finding.verdict != "supported"


def test_harmless_heads_are_refuted_within_the_margin(sample, trace):
    finding = head_ablation(experiment(sample, trace, treatment=1.0, num=120))
    assert finding.verdict == "refuted"
    assert head_ablation(experiment(sample, trace, treatment=1.0, num=8)).verdict == "inconclusive"


def test_a_treatment_no_worse_than_the_worst_draws_is_not_supported(sample, trace):
    # A third of the draws break the answer just as the treatment does: the heads are nothing special.
    traces = experiment(sample, trace, treatment=0.0, control=1.0, draws=21)
    for made in traces:
        if made.facts["role"] == "control" and made.facts["draw"] % 3 == 0:
            made.outcome = trace(made.sample, correct=False).outcome
    finding = head_ablation(traces)
    assert finding.comparison.p_value < 0.05
    assert finding.verdict == "inconclusive"
    assert any("7 of 21 draws" in note for note in finding.notes)


def test_prompts_pair_by_name_and_lone_ones_do_not_count(sample, trace):
    traces = experiment(sample, trace, num=10)
    traces.append(trace(sample(77), correct=True, role="treatment", intervention=REMOVED))
    assert head_ablation(traces).measured.n == 10


def test_failed_and_nan_units_are_counted(sample, trace):
    traces = experiment(sample, trace, num=10)
    traces[1] = trace(sample(0), role="treatment", failed="out of memory")
    traces[2] = trace(sample(0), role="control", draw=0, answer_log_probability=(float("nan"),))
    finding = head_ablation(traces)
    assert finding.measured.dropped == 2
    assert finding.measured.n == 9


def test_every_draw_is_in_the_table_and_the_figure(sample, trace):
    finding = head_ablation(experiment(sample, trace, draws=7))
    assert [row["draw"] for row in finding.records() if row["draw"] is not None] == list(range(7))
    dots = finding.figures[0].plotly["data"][0]
    assert len(dots["x"]) == 7
    for figure in finding.figures:
        go.Figure(figure.plotly)


def test_without_a_control_nothing_is_claimed(sample, trace):
    finding = head_ablation([t for t in experiment(sample, trace) if t.facts["role"] != "control"])
    assert finding.measured.value is None
    assert finding.verdict == "inconclusive"


def test_each_treatment_is_held_against_its_own_control(sample, trace):
    breaks = experiment(sample, trace, treatment=0.0, control=1.0)
    harmless = experiment(sample, trace, treatment=1.0, control=0.0)
    for made, name in [*((t, "a") for t in breaks), *((t, "b") for t in harmless)]:
        if made.facts["role"] == "treatment":
            made.condition = name
        elif made.facts["role"] == "control":
            made.condition, made.facts = f"others-{name}", {**made.facts, "matched_to": name}
    both = [*breaks, *(t for t in harmless if t.facts["role"] != "baseline")]
    finding = head_ablation(both, treatment="a")
    assert (finding.measured.value, finding.control.value) == (0, 100)
    assert finding.verdict == "supported"
    assert any("others-b" in note for note in finding.notes)
    assert head_ablation(both, treatment="b").control.value == 0


def test_several_controls_that_belong_to_nobody_are_refused(sample, trace):
    traces = experiment(sample, trace, num=4)
    for made in traces:
        if made.facts["role"] == "control":
            made.condition = f"others-{made.facts['draw'] % 2}"
    with pytest.raises(UsageError, match="several controls"):
        head_ablation(traces)


def test_too_few_draws_support_nothing(sample, trace):
    finding = head_ablation(experiment(sample, trace, draws=1))
    assert finding.verdict == "inconclusive"


def test_one_odd_draw_does_not_make_five_prompts_certain(sample, trace):
    traces = experiment(sample, trace, treatment=1.0, num=5)
    odd = next(made for made in traces if made.facts["role"] == "control")
    odd.outcome = trace(odd.sample, correct=False).outcome
    assert head_ablation(traces).verdict == "inconclusive"


def test_where_nothing_was_right_nothing_is_refuted(sample, trace):
    finding = head_ablation(experiment(sample, trace, baseline=0.0, treatment=0.0, control=0.0, num=60))
    assert finding.verdict == "inconclusive"


@pytest.mark.parametrize(("ratio", "said"), [(0.13, "No other heads"), (0.9, "matched in output norm")])
def test_how_well_the_control_is_matched_is_said(sample, trace, ratio, said):
    traces = experiment(sample, trace, num=6)
    for made in traces:
        if made.facts["role"] == "control":
            made.facts = {**made.facts, "norm_ratio": ratio}
    assert any(said in note for note in head_ablation(traces).notes)


def test_an_unknown_treatment_is_refused(sample, trace):
    with pytest.raises(UsageError, match="no treatment 'x'"):
        head_ablation(experiment(sample, trace, num=2), treatment="x")
