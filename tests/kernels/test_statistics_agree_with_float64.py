"""Every statistic of attention equals float64 over an implementation that shares no code with it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from probe.errors import UsageError
from probe.kernels.call import Call
from probe.kernels.dense import Dense
from probe.kernels.scan import Scan
from probe.kernels.statistic import names, parse


def scanned(call, requests, spans=(), **options):
    scan = Scan(requests, spans=spans, **options)
    scan.update(call)
    return {name: result.values.numpy() for name, result in scan.finish().items()}


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 127, 128, 129])
def test_blocked_and_reference_equal_an_independent_float64(attention, shape, length):
    call, spans = attention.make_call(shape, length, seed=length), attention.make_spans(length)
    wanted = attention.expected(call, spans)
    attention.assert_all_close(scanned(call, attention.REQUESTS, spans), wanted)
    attention.assert_all_close(scanned(call, attention.REQUESTS, spans, query_block=13, key_block=29), wanted)
    dense = Dense(call, spans)
    for request in attention.REQUESTS:
        statistic = parse(request)
        reference = {statistic.array_name(s): v.numpy() for s, v in statistic.reference(dense).items()}
        attention.assert_all_close(reference, wanted, tolerance=1e-9)


def test_a_thousand_tokens_agree(attention, shape):
    call = attention.make_call(shape, 1000, num_queries=250)
    wanted = attention.expected(call)
    attention.assert_all_close(scanned(call, attention.REQUESTS), wanted)
    attention.assert_all_close(scanned(call, attention.REQUESTS, query_block=64, key_block=128), wanted)


@pytest.mark.parametrize("num_queries", [1, 3, 40])
def test_a_sliding_cache_whose_first_keys_are_gone_agrees(attention, num_queries):
    shape = attention.Shape(kv_head=2, window=100)
    call = attention.make_call(shape, 140, key_start=900, num_queries=num_queries)
    spans = attention.make_spans(140, key_start=900)
    wanted = attention.expected(call, spans)
    attention.assert_all_close(scanned(call, attention.REQUESTS, spans), wanted, key_start=900)
    small_blocks = scanned(call, attention.REQUESTS, spans, query_block=2, key_block=31)
    attention.assert_all_close(small_blocks, wanted, key_start=900)


@pytest.mark.parametrize("options", [{}, {"query_block": 3, "key_block": 2}], ids=["default", "small blocks"])
@pytest.mark.parametrize("sink", [False, True])
def test_a_query_that_sees_no_key_counts_nothing(attention, options, sink):
    call = attention.make_call(attention.Shape(window=3, sink=sink), 12)
    # The first five keys are dropped: queries 0 to 4 see nothing.
    call = Call(**{**vars(call), "key": call.key[:, 5:], "value": call.value[:, 5:], "key_start": 5, "tokens": None})
    requests = [r for r in attention.REQUESTS if "match_mass" not in str(r)]
    actual = scanned(call, requests, **options)
    attention.assert_all_close(actual, attention.expected(call), key_start=5)
    assert (actual["entropy"][:, :5] == 0).all()
    assert (actual["argmax_key"][:, :5] == -1).all()
    assert np.isneginf(actual["max_logit"][:, :5]).all()


def test_sharp_heads_are_within_twice_eagers_own_error(attention):
    # Logits of a few hundred: what is subtracted from them is a thousand times larger than what is kept.
    call = attention.make_call(attention.Shape(sharpness=120.0), 200)
    wanted = attention.expected(call)
    logits = (call.query @ call.key.transpose(1, 2) * call.scale).masked_fill(torch.ones(200, 200).triu(1).bool(), -1e9)
    eager = torch.special.entr(logits.softmax(-1)).sum(-1).numpy()
    error = np.abs(scanned(call, ["entropy"])["entropy"] - wanted["entropy"]).max()
    assert error <= 2 * np.abs(eager - wanted["entropy"]).max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_input_is_no_worse_than_eager_attention(attention, shape, dtype):
    call = attention.make_call(shape, 200)
    half = Call(
        **{**vars(call), "query": call.query.to(dtype), "key": call.key.to(dtype), "value": call.value.to(dtype)}
    )
    attention.assert_no_worse_than_eager(scanned(half, attention.HALF_PRECISION), half)


def test_uniform_attention_has_its_closed_forms():
    length = 100
    query, key = torch.zeros(2, length, 8), torch.randn(1, length, 8)
    call = Call(0, query, key, key, scale=1.0)
    actual = scanned(call, ["entropy", "received_mass", "max_probability", "mean_distance", "log_sum_exp"])
    seen = np.arange(1, length + 1)
    np.testing.assert_allclose(actual["entropy"][1], np.log(seen), atol=1e-5)
    np.testing.assert_allclose(actual["log_sum_exp"][0], np.log(seen), atol=1e-5)
    np.testing.assert_allclose(actual["mean_distance"][0], (seen - 1) / 2, rtol=1e-5)
    # The first key's importance is the harmonic number H_T over T.
    importance = actual["received_mass"][0] / actual["received_mass_num_queries"]
    np.testing.assert_allclose(importance[0], (1 / seen).sum() / length, rtol=1e-5)
    assert (actual["received_mass_num_queries"] == seen[::-1]).all()
    # On ties the lowest key.
    assert (actual["argmax_key"] == 0).all()


def test_attention_to_one_key_has_its_closed_forms():
    length, position = 50, 7
    key = torch.zeros(1, length, 4)
    key[:, position] = 100.0
    call = Call(0, torch.ones(1, length, 4), key, torch.ones(1, length, 4), scale=1.0)
    actual = scanned(call, ["entropy", "max_probability", "received_mass", "sink_mass"])
    after = slice(position, None)
    np.testing.assert_allclose(actual["entropy"][0, after], 0, atol=1e-6)
    assert (actual["argmax_key"][0, after] == position).all()
    np.testing.assert_allclose(actual["received_mass"][0, position], length - position, rtol=1e-6)
    np.testing.assert_allclose(actual["sink_mass"][0, after], 0, atol=1e-6)


def test_a_sink_takes_everything():
    key = torch.zeros(1, 40, 4)
    key[:, 0] = 100.0
    call = Call(0, torch.ones(3, 40, 4), key, torch.ones(1, 40, 4), scale=1.0)
    actual = scanned(call, ["sink_mass", "received_mass", "recent_mass"])
    np.testing.assert_allclose(actual["sink_mass"], 1, atol=1e-6)
    np.testing.assert_allclose(actual["received_mass"][:, 0], 40, rtol=1e-6)
    np.testing.assert_allclose(actual["recent_mass"], 1, atol=1e-6)


def test_a_learned_sink_of_the_keys_own_size_takes_half():
    call = Call(0, torch.zeros(1, 1, 4), torch.zeros(1, 1, 4), torch.ones(1, 1, 4), 1.0, sink_logit=torch.zeros(1))
    actual = scanned(call, ["sink_mass", "entropy", "log_sum_exp"])
    np.testing.assert_allclose(actual["sink_mass"], 0.5)
    np.testing.assert_allclose(actual["sink_mass_learned"], 0.5)
    np.testing.assert_allclose(actual["entropy"], 0.5 * np.log(2))
    np.testing.assert_allclose(actual["log_sum_exp"], np.log(2))


def test_every_statistic_of_a_call_is_tested_here(attention):
    tested = {parse(request).name() for request in attention.REQUESTS}
    # Those of rotary pairs of channels are tested in test_rope_statistics.py.
    of_calls = [parse(name) for name in names() if parse(name).kind in ("scan", "row", "key")]
    assert tested == {each.name() for each in of_calls if not each.needs_rotary_pairs}


def test_the_dense_definition_refuses_what_would_not_fit():
    long = torch.zeros(1, 4097, 1)
    with pytest.raises(UsageError, match="4,096"):
        Dense(Call(0, long, long, long, 1.0))


@pytest.mark.parametrize("num_queries", [1, 20, 300])
@pytest.mark.parametrize("options", [{}, {"query_block": 13, "key_block": 29}], ids=["default", "small blocks"])
def test_cross_attention_sees_every_key_wherever_the_query_stands(attention, num_queries, options):
    call = attention.make_call(attention.Shape(kv_head=2, causal=False, part="cross"), 129, num_queries=num_queries)
    # The decoder is further in its own text than the encoder's has tokens, or not.
    call = dataclasses.replace(call, query_start=250 if num_queries == 20 else 0)
    spans = attention.make_spans(129)
    requests = [request for request in attention.REQUESTS if not parse(request).compares_positions]
    whole = scanned(call, requests, spans, **options)
    attention.assert_all_close(whole, attention.expected(call, spans))
    assert (whole["received_mass_num_queries"] == num_queries).all()
    assert {"span_mass", "top_keys", "entropy", "attention_map", "key_norm"} <= set(whole)


def test_cross_attention_has_no_distances(attention):
    call = attention.make_call(attention.Shape(causal=False, part="cross"), 20)
    for name in ("mean_distance", "recent_mass", "offset_mass", "distance_histogram", "match_mass"):
        with pytest.raises(ValueError, match=f"of two texts: {name}"):
            scanned(call, [name])


def test_a_linear_relative_bias_is_alibi(attention):
    call = attention.make_call(attention.Shape(alibi=True), 129)
    bias = -call.alibi_slope[:, None] * torch.arange(129)
    alike = dataclasses.replace(call, alibi_slope=None, distance_bias=bias)
    attention.assert_all_close(scanned(alike, attention.REQUESTS), attention.expected(call))
    with pytest.raises(ValueError, match="softcap and ALiBi or a position bias"):
        scanned(dataclasses.replace(alike, softcap=5.0), ["entropy"])
