from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from probe.analyses.attention_dispersion import attention_dispersion
from probe.analyses.measures.dispersion import slope_ends, slopes
from tests.effects.attention_dispersion import null_uniform, planted


def spread(sample, trace, peak, lengths=(64, 128, 256), num=4, entropy=None, **more):
    """Prompts in which every head has the largest probability `peak(length)`, the rest even."""
    made = []
    for length in lengths:
        seen = np.arange(1, length + 1)
        largest = np.clip(np.full((3, 4, length), peak(length)), 1 / seen, 1)
        rest = np.clip(1 - largest, 1e-12, None)
        flat = -largest * np.log(largest) - rest * (np.log(rest) - np.log(np.maximum(seen - 1, 1)))
        arrays = {
            "entropy": (("layer", "head", "query"), flat if entropy is None else np.broadcast_to(entropy, flat.shape)),
            "max_probability": (("layer", "head", "query"), largest),
        }
        made += [
            trace(sample(i, length=length, half=("find", "test")[i % 2]), arrays=arrays, **more) for i in range(num)
        ]
    return made


def test_uniform_attention_has_an_index_of_one_and_nothing_to_lose(sample, trace):
    finding = attention_dispersion(spread(sample, trace, lambda length: 0.0))
    rows = finding.records()
    assert len(rows) == 12
    assert all(row["normalised_entropy_shortest"] == pytest.approx(1, abs=1e-3) for row in rows)
    assert not any(row["disperses"] for row in rows)
    # The question is the last 4 tokens, and the last eighth of what stands before it is looked at.
    expected = np.mean([1 / (i + 1) for i in range(60 - 7, 60)])
    assert rows[0]["max_probability_shortest"] == pytest.approx(expected, rel=1e-3)


def test_a_planted_fall_is_found_with_its_slope_and_heads():
    finding = attention_dispersion(planted(0.1, 3))
    assert finding.verdict == "supported"
    assert finding.measured.value == pytest.approx(-0.1, abs=0.02)
    assert finding.measured.interval.low < finding.measured.value < finding.measured.interval.high < -0.01
    assert {(row["layer"], row["head"]) for row in finding.records() if row["disperses"]} == {(0, 2), (2, 1)}
    assert finding.control.value == pytest.approx(0, abs=0.01)


def test_a_head_over_a_fixed_number_of_keys_does_not_disperse(sample, trace):
    # Its index falls: log 8 over the logarithm of more and more keys.
    finding = attention_dispersion(spread(sample, trace, lambda length: 1 / 8, entropy=np.log(8.0)))
    assert finding.verdict == "refuted"
    row = finding.records()[0]
    assert row["normalised_entropy_longest"] < row["normalised_entropy_shortest"]


def test_the_factor_is_the_derivative_of_the_softmax(sample, trace):
    # One peak of probability p above an even rest: with logits times b, p becomes p^b / (p^b + (n - 1) (rest)^b).
    finding = attention_dispersion(spread(sample, trace, lambda length: 0.6 - 0.05 * np.log2(length / 64), num=6))
    [factor] = [d for d in finding.details if "to first order" in d.name]

    def brought(b: float) -> float:
        far = np.arange(256 - 4 - 31, 256 - 4)
        p, rest = 0.5, 0.5 / far
        return float(np.mean(p**b / (p**b + far * rest**b)))

    rate = (brought(1 + 1e-5) - brought(1 - 1e-5)) / 2e-5
    assert factor.value - 1 == pytest.approx(0.1 / rate, rel=1e-3)
    [ratio] = [d for d in finding.details if "log-length" in d.name]
    assert ratio.value == pytest.approx(np.log(256) / np.log(64))


def test_slopes_are_those_of_least_squares_and_their_interval_holds_them():
    generator = np.random.default_rng(0)
    lengths = np.repeat([64, 128, 512], 10)
    inside = 0
    for seed in range(60):
        values = 0.3 - 0.05 * np.log2(lengths / 64) + generator.normal(0, 0.1, 30)
        slope, error = slopes(values[:, None], lengths)
        known = stats.linregress(np.log2(lengths), values)
        assert (slope[0], error[0]) == pytest.approx((known.slope, known.stderr))
        low, high = slope_ends(values, lengths, seed=seed)
        inside += low <= -0.05 <= high
    # 95 % of 60 are 57; below 51 are less than 1 in 1,000.
    assert inside >= 51


def test_pooled_queries_give_nearly_the_same(sample, trace):
    whole = spread(sample, trace, lambda length: 0.6 - 0.1 * np.log2(length / 256), lengths=(256, 512, 1024))
    pooled = spread(sample, trace, lambda length: 0.6 - 0.1 * np.log2(length / 256), lengths=(256, 512, 1024))
    for each in pooled:
        dataset = each.dataset.coarsen(query=16).mean().rename(query="query_block")
        each.dataset = dataset.assign_coords(query_block=np.arange(0, len(each.sample), 16))
    first, second = attention_dispersion(whole), attention_dispersion(pooled)
    assert second.verdict == first.verdict == "supported"
    assert second.measured.value == pytest.approx(first.measured.value, rel=0.02)


def test_retrieval_heads_are_shown_apart_at_the_answer(sample, trace, looking):
    traces = spread(sample, trace, lambda length: 0.5)
    for each in traces:
        keys = looking(each.sample, {(1, 1): 1.0})
        largest = np.full((*keys.shape, 1), 1.0 - 0.1 * np.log2(each.sample.facts["length"] / 64))
        each.dataset["top_keys_k_1"] = (("layer", "head", "row", "rank"), keys[..., None])
        each.dataset["top_keys_k_1_probability"] = (("layer", "head", "row", "rank"), largest)
    finding = attention_dispersion(traces)
    [at_answer] = [d for d in finding.details if "at the answer" in d.name]
    assert at_answer.value == pytest.approx(-0.1)
    assert [(r["layer"], r["head"]) for r in finding.records() if r["retrieves"]] == [(1, 1)]


def test_one_length_tells_nothing_and_what_lacks_attention_is_counted(sample, trace):
    one = spread(sample, trace, lambda length: 0.5, lengths=(64,))
    finding = attention_dispersion([*one, trace(sample(99))])
    assert finding.verdict == "inconclusive"
    assert "one length" in finding.claim
    assert finding.measured.dropped == 1
    assert attention_dispersion(null_uniform(1)).verdict != "supported"
