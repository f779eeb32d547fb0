from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest

from probe.analyses.attention_sinks import attention_sinks
from probe.analyses.figures.sinks import uniform_importance
from probe.errors import UsageError

HORIZON = 64


def received(attention):
    """Σ_i p_ij over the first 64 queries of `attention [layer head query key]`."""
    return (("layer", "head", "key"), attention.sum(axis=2))


def uniform(num_layers=2, num_heads=4):
    rows = np.tril(np.ones((HORIZON, HORIZON))) / np.arange(1, HORIZON + 1)[:, None]
    return np.broadcast_to(rows, (num_layers, num_heads, HORIZON, HORIZON)).copy()


def sunk(attention, heads, share):
    """Give the first key this share of each later row, and the rest what is left."""
    for head in heads:
        attention[head] *= 1 - share
        attention[head][:, 0] += share
    return attention


def traces_of(sample, trace, attentions, **arrays):
    return [
        trace(sample(i), arrays={"received_mass_horizon_64": received(attention), **arrays})
        for i, attention in enumerate(attentions)
    ]


def test_uniform_importance_is_the_harmonic_number_over_the_horizon():
    assert uniform_importance(64)[0] == pytest.approx(0.0741, abs=5e-5)
    assert uniform_importance(2048)[0] == pytest.approx(0.0040, abs=5e-5)
    harmonic = sum(1 / i for i in range(1, 65))
    assert uniform_importance(64)[0] == pytest.approx(harmonic / 64)
    assert uniform_importance(64)[-1] == pytest.approx(1 / 64)


def test_uniform_attention_has_no_sink(sample, trace):
    finding = attention_sinks(traces_of(sample, trace, [uniform()] * 8))
    assert finding.measured.value == 0
    assert finding.verdict == "refuted"
    largest = next(m for m in finding.details if "the largest" in m.name)
    assert largest.value == pytest.approx(0.0741, abs=5e-5)


@pytest.mark.parametrize(("share", "verdict", "percent"), [(0.5, "supported", 25.0), (0.1, "refuted", 0.0)])
def test_a_planted_sink_is_measured_by_the_papers_formula(sample, trace, share, verdict, percent):
    attentions = [sunk(uniform(), [(0, 1), (1, 2)], share) for _ in range(8)]
    finding = attention_sinks(traces_of(sample, trace, attentions))
    # alpha_1 = (1 / T) Σ_i A[i, 1], read again from the attention itself.
    alpha = np.mean([a[..., 0].mean(axis=-1) for a in attentions], axis=0)
    assert finding.measured.value == pytest.approx(percent)
    assert finding.verdict == verdict
    rows = {(row["layer"], row["head"]): row["importance_of_first_token"] for row in finding.records()}
    assert rows[0, 1] == pytest.approx(alpha[0, 1], rel=1e-3)
    assert rows[1, 0] == pytest.approx(alpha[1, 0], rel=1e-3)


def test_a_sliding_window_does_not_pass_for_a_sink(sample, trace):
    # Two positions a query: key 0 takes all of query 0 and half of query 1, and is out of sight of the other 62.
    rows = np.eye(HORIZON) / 2 + np.eye(HORIZON, k=-1) / 2
    rows[0, 0] = 1
    attention = np.broadcast_to(rows, (2, 4, HORIZON, HORIZON)).copy()
    finding = attention_sinks(traces_of(sample, trace, [attention] * 8))
    assert finding.measured.value == 0
    assert finding.verdict == "refuted"


def test_a_sink_on_another_token_is_told_apart(sample, trace):
    attention = uniform()
    attention[0, 0, 2:] *= 0.2
    attention[0, 0, 2:, 2] += 0.8
    finding = attention_sinks(traces_of(sample, trace, [attention] * 8))
    by_name = {m.name: m.value for m in finding.details}
    assert finding.measured.value == 0
    assert by_name["heads with a sink on token 2 (counted from 0)"] == pytest.approx(12.5)


def test_the_curve_over_thresholds_falls_from_all_to_none(sample, trace):
    finding = attention_sinks(traces_of(sample, trace, [sunk(uniform(), [(0, 1)], 0.5)] * 8))
    curve = next(figure for figure in finding.figures if figure.name == "sink_thresholds")
    line = next(data for data in curve.plotly["data"] if data.get("name") == "first token")
    assert line["y"][0] == 1.0
    assert line["y"][-1] == 0.0
    assert line["y"][line["x"].index(0.3)] == pytest.approx(1 / 8)


def test_short_and_broken_prompts_are_counted_and_left_out(sample, trace):
    good = traces_of(sample, trace, [uniform()] * 6)
    short = trace(sample(20, length=40), arrays={"received_mass_horizon_64": received(uniform()[:, :, :, :40])})
    broken = uniform()
    broken[0, 0, 3, 1] = np.nan
    bad = trace(sample(21), arrays={"received_mass_horizon_64": received(broken)})
    pooled = trace(
        sample(22), arrays={"received_mass_horizon_64": (("layer", "head", "key_block"), np.ones((2, 4, 4)))}
    )
    finding = attention_sinks([*good, short, bad, pooled])
    assert (finding.measured.n, finding.measured.dropped) == (6, 3)
    assert finding.measured.value == 0


@pytest.mark.parametrize("block", [1, 16, 64])
def test_mass_stands_beside_the_metric_pooled_or_not(sample, trace, block):
    positions = np.arange(3 * HORIZON)
    sink = np.broadcast_to(np.minimum(1, 4 / (positions + 1)), (2, 4, len(positions)))
    axis, values = "query", sink
    if block > 1:
        axis, values = "query_block", sink.reshape(2, 4, -1, block).mean(axis=-1)
    arrays = {"received_mass_horizon_64": received(uniform()), "sink_mass": (("layer", "head", axis), values)}
    # Three of the four answer tokens were put through after the prompt, and are queries too.
    long = [trace(sample(seed, length=len(positions) - 3), arrays=arrays) for seed in range(6)]
    for each in long:
        coordinate = np.arange(values.shape[-1]) * block
        each.dataset = each.dataset.assign_coords({axis: coordinate})
    by_name = {m.name: m.value for m in attention_sinks(long).details}
    expected = 100 * np.mean(4 / (positions[HORIZON:] + 1))
    mass = "attention on the first 4 tokens, by queries past the horizon"
    assert by_name[mass] == pytest.approx(expected)
    assert by_name["attention on the first 4 tokens, by those queries, were it uniform"] == pytest.approx(expected)


def test_value_norm_stands_beside_the_metric(sample, trace):
    norm = np.ones((2, 2, HORIZON))
    norm[..., 0] = 0.25
    finding = attention_sinks(traces_of(sample, trace, [uniform()] * 6, value_norm=(("layer", "kv_head", "key"), norm)))
    by_name = {m.name: m.value for m in finding.details}
    assert by_name["value norm of the first token over the median of the others"] == pytest.approx(0.25)


def test_no_long_prompt_measures_nothing(sample, trace):
    finding = attention_sinks([trace(sample(0, length=40))])
    assert finding.measured.value is None
    assert finding.verdict == "inconclusive"


def test_needs_follow_the_parameters():
    assert attention_sinks.needs()["received_mass"] == {"horizon": 64}
    assert attention_sinks.needs(horizon=128, epsilon=0.2)["received_mass"] == {"horizon": 128}


def test_figures_are_valid_plotly(sample, trace):
    for figure in attention_sinks(traces_of(sample, trace, [uniform()] * 3)).figures:
        go.Figure(figure.plotly)


@pytest.mark.parametrize("wrong", [{"epsilon": 0}, {"horizon": 4}, {"horizon": 8}, {"horizon": 9}])
def test_a_bad_parameter_is_refused_by_name(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        attention_sinks([], **wrong)


def test_a_threshold_that_uniform_attention_passes_is_refused_with_its_bound():
    # The first key's uniform importance within 64 queries is 0.0741.
    with pytest.raises(UsageError, match=r"epsilon 0\.05.*0\.0741"):
        attention_sinks([], epsilon=0.05)
    attention_sinks([], epsilon=0.075)


def test_the_shortest_horizon_that_is_taken_works(sample, trace):
    made = [trace(sample(i), arrays={"received_mass_horizon_10": received(uniform()[:, :, :10])}) for i in range(6)]
    assert attention_sinks(made, horizon=10).measured.value == 0


def test_uniform_attention_over_a_window_of_two_is_as_by_hand():
    # Query 0 gives key 0 all, query 1 half, the other 62 nothing; key 1 gets half of queries 1 and 2.
    value = uniform_importance(64, 2)
    assert value[0] == pytest.approx((1 + 1 / 2) / 64)
    assert value[1] == pytest.approx((1 / 2 + 1 / 2) / 63)
    assert value[-1] == pytest.approx(1 / 2)
    assert uniform_importance(64, 64) == pytest.approx(uniform_importance(64))
    assert uniform_importance(64, 1000) == pytest.approx(uniform_importance(64))


def test_the_control_sees_what_each_layers_queries_see(sample, trace):
    attention = uniform()
    attention[0] = np.eye(HORIZON) / 2 + np.eye(HORIZON, k=-1) / 2
    attention[0, :, 0, 0] = 1
    num_queries = np.array([np.full(HORIZON, 2), HORIZON - np.arange(HORIZON)])
    num_queries[0, -1] = 1
    sink = np.zeros((2, 4, 2 * HORIZON))
    made = [
        trace(
            sample(i, length=2 * HORIZON),
            arrays={
                "received_mass_horizon_64": received(attention),
                "received_mass_horizon_64_num_queries": (("layer", "key"), num_queries),
                "sink_mass": (("layer", "head", "query"), sink),
            },
        )
        for i in range(6)
    ]
    finding = attention_sinks(made)
    by_name = {m.name: m.value for m in finding.details}
    importance = "importance of the first token, were attention uniform in layers"
    assert by_name[f"{importance} [0] (window of 2 tokens)"] == pytest.approx(0.0234, abs=5e-5)
    assert by_name[f"{importance} [1]"] == pytest.approx(0.0741, abs=5e-5)
    # Past the horizon the window never reaches the first four; the other layer sees everything.
    full = np.mean(4 / np.arange(HORIZON + 1, 2 * HORIZON + 1))
    expected = by_name["attention on the first 4 tokens, by those queries, were it uniform"]
    assert expected == pytest.approx(100 * full / 2)
    positions = next(figure for figure in finding.figures if figure.name == "sink_positions").plotly["data"][-1]
    assert positions["y"][0] == pytest.approx((0.0741 + 0.0234) / 2, abs=5e-4)


def test_a_share_that_all_prompts_agree_on_has_an_interval_all_the_same(sample, trace):
    finding = attention_sinks(traces_of(sample, trace, [uniform()] * 8))
    # Clopper-Pearson of 0 in 8.
    assert finding.measured.interval.low == 0
    assert finding.measured.interval.high == pytest.approx(100 * (1 - 0.025 ** (1 / 8)))
    assert finding.headline == "No head makes the first token a sink at ε = 0.3"
    assert "-0" not in finding.claim


def test_a_head_that_may_reach_the_threshold_refutes_nothing(sample, trace):
    shares = np.linspace(0.0, 0.24, 5).tolist() + [0.24] * 3
    below = [sunk(uniform(), [(0, 1)], share) for share in shares]
    assert attention_sinks(traces_of(sample, trace, below), epsilon=0.3).verdict == "refuted"
    # One prompt in eight far above: on average below the threshold, and not certainly.
    mixed = [sunk(uniform(), [(0, 1)], share) for share in [0.1] * 5 + [0.5] * 3]
    finding = attention_sinks(traces_of(sample, trace, mixed), epsilon=0.3, margin=50)
    assert finding.verdict != "refuted"


def test_one_prompt_is_no_prompts_and_gives_no_verdict(sample, trace):
    finding = attention_sinks(traces_of(sample, trace, [uniform()]))
    assert finding.verdict == "inconclusive"
    assert finding.claim.startswith("Whether heads make the first token a sink cannot be told")
    assert finding.claim.endswith("(n = 1 prompt).")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        ({"length": 40}, "shorter than the horizon of 64 tokens (1 of 1)"),
        ({"failed": "no memory"}, "the unit failed (1 of 1)"),
        ({"pooled": True}, "pooled over blocks"),
        (None, "there is no prompt"),
    ],
)
def test_where_nothing_is_measured_the_claim_says_why(sample, trace, make, reason):
    traces = []
    if make is not None:
        pooled = {"received_mass_horizon_64": (("layer", "head", "key_block"), np.ones((2, 4, 4)))}
        made = sample(0, length=make.get("length", 64))
        traces = [trace(made, failed=make.get("failed"), arrays=pooled if "pooled" in make else None)]
    finding = attention_sinks(traces)
    assert reason in finding.claim
    assert ("horizon" in finding.claim) == (make is not None and "length" in make)


def test_a_decoder_beside_an_encoder_says_nothing_of_the_texts_first_token(sample, trace):
    made = trace(
        sample(0, length=64), arrays={"received_mass_horizon_64": (("layer", "head", "key"), np.ones((1, 1, 64)))}
    )
    made.parts = ("encoder", "cross")
    finding = attention_sinks([made])
    assert finding.verdict == "inconclusive"
    assert any('trace.part("encoder")' in note for note in finding.notes)
