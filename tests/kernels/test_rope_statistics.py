"""The parts of rotary pairs sum to the logit, are sampled by position alone, and find what was planted in them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from probe.errors import UsageError
from probe.kernels.call import Call
from probe.kernels.dense import Dense
from probe.kernels.rope_pairs import bin_edges, drawn_distances, drawn_pairs
from probe.kernels.scan import Scan
from probe.kernels.statistic import parse
from tests.kernels.rotary_parts import of_rotary, turning

NAMES = ["rope_share", "rope_correlation"]


def with_pairs(call: Call) -> Call:
    return dataclasses.replace(call, rotary_pairs=turning(call.query.shape[-1]))


def arrays(calls, requests=NAMES, **options):
    scan = Scan(requests, **options)
    for call in calls:
        scan.update(call)
    return {name: result.values.numpy() for name, result in scan.finish().items()}


@pytest.mark.parametrize("length", [1, 2, 16, 129])
def test_both_equal_an_independent_float64(attention, shape, length):
    call = with_pairs(attention.make_call(shape, length, seed=length))
    wanted = of_rotary(call)
    got = arrays([call])
    assert got.keys() == wanted.keys()
    attention.assert_all_close(got, wanted)
    for name in NAMES:
        statistic = parse(name)
        reference = {statistic.array_name(s): v.numpy() for s, v in statistic.reference(Dense(call)).items()}
        attention.assert_all_close(reference, wanted, tolerance=1e-9)


@pytest.mark.parametrize("chunk", [1, 15, 129])
@pytest.mark.parametrize("keep", [None, 100])
def test_chunks_draw_the_same_pairs(attention, chunk, keep):
    shape = attention.Shape(head=6, kv_head=2, channel=60, window=None if keep is None else 101)
    call = with_pairs(attention.make_call(shape, 300))
    pieces = [attention.cut(call, a, min(a + chunk, 300), phase="prefill", keep=keep) for a in range(0, 300, chunk)]
    attention.assert_all_close(arrays(pieces), of_rotary(call))


def test_the_parts_sum_to_the_logit_exactly(attention, shape):
    call = with_pairs(attention.make_call(dataclasses.replace(shape, softcap=None, alibi=False, bias=None), 70))
    logit = Dense(call).logit.numpy()
    first = 0
    for pairs in drawn_pairs(call, 0, 4):
        rows, bins = np.nonzero(pairs.there.numpy())
        keys = first + rows - pairs.distance.numpy()[rows, bins]
        np.testing.assert_allclose(pairs.logit.numpy()[:, rows, bins], logit[:, first + rows, keys], atol=1e-12)
        first += len(pairs.there)
    assert first == 70


def test_keys_are_drawn_evenly_within_their_bins_and_never_from_the_sinks():
    position = np.arange(5_000)
    drawn, there = drawn_distances(position, 0, 4, None)
    edges = bin_edges(4_999)
    assert edges.tolist() == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]
    for b in range(len(edges) - 1):
        rows = there[:, b]
        assert (position[rows] - drawn[rows, b] >= 4).all()
        assert ((drawn[rows, b] >= edges[b]) & (drawn[rows, b] < edges[b + 1])).all()
        full = rows & (position >= edges[b + 1] + 4)
        if full.sum() > 100:
            share = (drawn[full, b] - edges[b]) / max(1, edges[b + 1] - edges[b] - 1)
            # Mean of an even draw, within five standard errors.
            assert edges[b + 1] - edges[b] < 2 or abs(share.mean() - 0.5) < 5 / np.sqrt(4 * full.sum())
    assert (drawn_distances(position, 1, 4, None)[0] != drawn).mean() > 0.3
    assert not drawn_distances(position, 0, 4, 64)[1][:, 7:].any()


def rotated(length: int, weight: np.ndarray, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys of ones in each pair, turned by 1, 0.1, 0.01 … radians a token, each pair this strong."""
    frequency = 10.0 ** -torch.arange(len(weight), dtype=torch.float64)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    size = torch.from_numpy(weight).double().sqrt()
    vector = torch.cat([angle.cos() * size, angle.sin() * size], -1)
    return vector[None], vector[None]


def test_a_head_of_one_pair_has_its_share():
    query, key = rotated(200, np.array([0.0, 0.0, 1.0]), 0)
    call = Call(0, query, key, key, 1.0, rotary_pairs=turning(6))
    got = arrays([call], ["rope_share"])["rope_share"][0]
    np.testing.assert_allclose(got, np.tile([0, 0, 1.0], (len(got), 1)), atol=1e-6)


def test_correlations_of_known_cosines():
    query, key = rotated(2000, np.array([1.0, 0.0, 3.0]), 0)
    call = Call(0, query, key, key, 1.0, rotary_pairs=turning(6))
    got = arrays([call])
    # c is cos d and 3 cos d/100, whatever the tokens are: the same pairs by the closed form.
    drawn, there = drawn_distances(np.arange(2000), 0, 4, None)
    d = drawn[there & (drawn >= 64)]
    fast, slow = np.cos(d), 3 * np.cos(d / 100)
    r = [np.corrcoef(fast, fast + slow)[0, 1], 0, np.corrcoef(slow, fast + slow)[0, 1]]
    np.testing.assert_allclose(got["rope_correlation"][0], r, atol=1e-5)
    share = abs(slow) / (abs(fast) + abs(slow))
    wanted = np.corrcoef(share, d)[0, 1]
    np.testing.assert_allclose(got["rope_correlation_distance"][0], [0, wanted, wanted], atol=1e-5)
    assert abs(got["rope_correlation_shuffled"][0, 2]) < 5 / np.sqrt(len(d))
    assert got["rope_correlation_num_pairs"][0] == len(d)


def test_layers_that_do_not_turn_have_no_array(attention):
    assert not arrays([attention.make_call(attention.Shape(), 20)])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_broken_head_leaves_the_others_as_they_are(attention, bad):
    call = with_pairs(attention.make_call(attention.Shape(), 200))
    whole = arrays([call])
    query = call.query.clone()
    query[1] = bad
    got = arrays([dataclasses.replace(call, query=query)])
    for name, values in got.items():
        np.testing.assert_array_equal(values[[0, 2, 3]], whole[name][[0, 2, 3]])
    assert np.isnan(got["rope_correlation"][1]).all()


def test_negative_distances_are_refused():
    with pytest.raises(UsageError, match="at least 0"):
        parse({"rope_share": {"sinks": -1}})
    with pytest.raises(UsageError, match="at least 0"):
        parse({"rope_correlation": {"nearest": -1}})
