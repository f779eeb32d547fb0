"""What a cut cache retains is counted as it is by hand, and better than chance only where votes say what comes."""

from __future__ import annotations

import numpy as np
import pytest

from probe import discovery
from probe.analyses.measures.cache_policies import kept_keys
from probe.errors import UsageError
from tests.effects import kv_cache as effects

kv_cache = discovery.get("analyses", "kv_cache")


def by_hand(traces, keep):
    """Retained attention of the rows after the first, and the needle's share, with `keep(trace)` of each key."""
    retained, needle = [], []
    for trace in traces:
        rows = np.zeros((*effects.SHAPE, effects.NUM_ROWS, effects.LENGTH))
        keys = trace["top_keys_k_256"].values
        np.put_along_axis(rows, keys, trace["top_keys_k_256_probability"].values, -1)
        rows, kept = rows[:, :, 1:], keep(trace)[:, :, None]
        span = trace.sample.span("needle")
        retained.append((rows * kept).sum(-1).mean())
        inside = slice(span.start, span.stop)
        needle.append((rows * kept)[..., inside].sum() / rows[..., inside].sum())
    return float(np.mean(retained)), float(np.mean(needle))


def row(finding, policy, budget=0.25):
    return next(r for r in finding.records() if r["policy"] == policy and r["budget"] == budget)


def test_streaming_keeps_the_first_four_and_the_last():
    traces = effects.planted(0.4, 1)
    position = np.arange(effects.LENGTH)
    kept = np.broadcast_to((position < 4) | (position >= effects.LENGTH - 60), (*effects.SHAPE, effects.LENGTH))
    retained, needle = by_hand(traces, lambda trace: kept)
    found = row(kv_cache(traces), "StreamingLLM")
    assert found["retained_attention"] == pytest.approx(retained, abs=1e-4)
    assert found["needle_attention_kept"] == pytest.approx(needle, abs=1e-4)


def test_snapkv_keeps_its_window_and_the_keys_with_most_votes_around_them():
    traces = effects.planted(0.4, 2)

    def keep(trace):
        votes = trace["window_mass"].values
        kept = np.zeros(votes.shape, bool)
        kept[..., -32:] = True
        for at in np.ndindex(effects.SHAPE):
            pooled = [votes[at][max(0, j - 2) : j + 3].sum() / 5 for j in range(effects.LENGTH - 32)]
            kept[at][np.argsort(pooled)[-32:]] = True
        return kept

    retained, needle = by_hand(traces, keep)
    found = row(kv_cache(traces), "SnapKV")
    assert found["retained_attention"] == pytest.approx(retained, abs=1e-4)
    assert found["needle_attention_kept"] == pytest.approx(needle, abs=1e-4)
    assert found["sees_the_question"] == "yes"


def test_heavy_hitters_do_not_know_the_queries_that_are_measured():
    traces = effects.planted(0.4, 3)

    def keep(trace):
        rows = np.zeros((*effects.SHAPE, effects.NUM_ROWS, effects.LENGTH))
        np.put_along_axis(rows, trace["top_keys_k_256"].values, trace["top_keys_k_256_probability"].values, -1)
        past = trace["received_mass"].values - rows[:, :, 1:].sum(2)
        kept = np.zeros(past.shape, bool)
        kept[..., -32:] = True
        for at in np.ndindex(effects.SHAPE):
            kept[at][np.argsort(past[at][:-32])[-32:]] = True
        return kept

    found = row(kv_cache(traces), "H2O")
    assert found["retained_attention"] == pytest.approx(by_hand(traces, keep)[0], abs=1e-4)


def test_small_key_norms_stay():
    traces = effects.planted(0.4, 4)

    def keep(trace):
        norm = trace["key_norm"].values
        return norm <= np.sort(norm, -1)[..., 63:64]

    assert row(kv_cache(traces), "key norm")["retained_attention"] == pytest.approx(by_hand(traces, keep)[0], abs=1e-4)


def test_tova_keeps_what_the_last_query_looks_at_the_same_in_all_heads():
    traces = effects.planted(0.4, 9)

    def keep(trace):
        last = trace["window_mass_window_1"].values
        kept = np.zeros(last.shape, bool)
        for layer in range(len(last)):
            kept[layer][:, np.argsort(last[layer].sum(0))[-64:]] = True
        return kept

    retained, needle = by_hand(traces, keep)
    found = row(kv_cache(traces), "TOVA")
    assert found["retained_attention"] == pytest.approx(retained, abs=1e-4)
    assert found["needle_attention_kept"] == pytest.approx(needle, abs=1e-4)
    whole = np.mean(
        [keep(trace)[..., trace.sample.span("needle").start :][..., :12].all(-1).mean() for trace in traces]
    )
    part = np.mean([keep(trace)[..., trace.sample.span("needle").start :][..., :12].any(-1).mean() for trace in traces])
    assert found["needle_kept_whole"] == pytest.approx(whole, abs=1e-4)
    assert found["needle_kept_in_part"] == pytest.approx(part, abs=1e-4)


def test_what_each_head_still_sees_of_the_needle():
    traces = effects.planted(0.8, 10)
    figure = next(each for each in kv_cache(traces).figures if each.name == "cache_needle_heads")
    assert "SnapKV" in figure.caption


@pytest.mark.parametrize("policy", ["StreamingLLM", "SnapKV", "H2O", "TOVA", "key norm", "random"])
def test_every_policy_keeps_as_much(policy):
    score = np.random.default_rng(0).random((2, 3, 200))
    assert (kept_keys(policy, score, 70, 32).sum(-1) == 70).all()


def test_random_eviction_keeps_its_budget_of_flat_attention():
    found = row(kv_cache(effects.planted(0.0, 5)), "random", 0.5)
    assert found["retained_attention"] == pytest.approx(0.5, abs=0.03)


def test_what_lies_below_the_ranks_counts_as_lost():
    traces = effects.planted(0.4, 6)
    whole = row(kv_cache(traces), "StreamingLLM")["retained_attention"]
    for trace in traces:
        trace.dataset = trace.dataset.isel(rank=slice(0, 60))
    finding = kv_cache(traces)
    assert row(finding, "StreamingLLM")["retained_attention"] < whole
    assert any("lies below the captured ranks" in note for note in finding.notes)


def test_answers_of_one_token_and_short_prompts_are_left_out_by_name():
    traces = effects.planted(0.4, 7)
    for trace in traces:
        trace.outcome = trace.outcome.__class__(**{**trace.outcome.__dict__, "response_tokens": (1,)})
    assert "one token leaves no query" in kv_cache(traces).claim
    assert "keeps no more than the last 32" in kv_cache(effects.planted(0.4, 7), budgets=(0.1,)).claim
    with pytest.raises(UsageError, match="budgets"):
        kv_cache([], budget=1.5)


def test_channels_and_layers_are_told_where_they_were_captured():
    traces = effects.planted(0.4, 8)
    generator = np.random.default_rng(0)
    for trace in traces:
        size = ("layer", "kv_head", "channel")
        trace.dataset["key_channel_energy"] = (size, np.ones((2, 2, 16)))
        energy = np.ones((2, 2, 16))
        energy[..., :4] = 9.0
        trace.dataset["key_channel_energy_query"] = (size, energy)
        similar = generator.random((2, 2, effects.LENGTH)) * 0.1
        similar[0] = np.nan
        trace.dataset["key_layer_similarity"] = (("layer", "kv_head", "key"), similar)
    details = {d.name: d.value for d in kv_cache(traces).details}
    half = next(value for name, value in details.items() if "without 50 % of key channels" in name)
    assert half == pytest.approx(100 * (4 * 9 + 4) / (4 * 9 + 12))
    assert any("layer 1 (MiniCache)" in name for name in details)
