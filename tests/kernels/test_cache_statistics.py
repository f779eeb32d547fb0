"""The statistics of a KV cache find what was planted, however it was cut, and say where there is nothing to compare."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from probe.errors import UsageError
from probe.kernels import keys
from probe.kernels.call import Call
from probe.kernels.dense import Dense
from probe.kernels.keys import BLOCK_KEYS
from probe.kernels.scan import Scan
from probe.kernels.statistic import parse

LAYERED = ["key_layer_similarity", "value_layer_similarity"]
CACHE = [*LAYERED, "key_neighbour_similarity", "key_spectrum", "key_channel_energy"]
LENGTH = 300


def arrays(scan):
    return {name: result.values.numpy() for name, result in scan.finish().items()}


def layers_of(attention, shape, num_layers=3, length=LENGTH):
    calls = [attention.make_call(shape, length, seed=layer) for layer in range(num_layers)]
    return [dataclasses.replace(call, layer=layer) for layer, call in enumerate(calls)]


def read(attention, calls, requests, chunk, *, keep=None, **options):
    """Put a prompt through layer by layer, chunk by chunk, as a model does; return each layer's arrays."""
    scans = [Scan(requests, **options) for _ in calls]
    length, below = calls[0].num_queries, None
    for first in range(0, length, chunk):
        for scan, call in zip(scans, calls, strict=True):
            scan.update(attention.cut(call, first, min(first + chunk, length), phase="prefill", keep=keep), below)
            below = scan.hand_over()
    return [arrays(scan) for scan in scans]


def cosines(a, b):
    a, b = a.double().numpy(), b.double().numpy()
    out = np.zeros(a.shape[:2])
    for place in np.ndindex(out.shape):
        out[place] = a[place] @ b[place] / np.sqrt((a[place] @ a[place]) * (b[place] @ b[place]))
    return out


@pytest.mark.parametrize("chunk", [1, 15, 129, LENGTH])
@pytest.mark.parametrize("channel", [16, 60])
@pytest.mark.parametrize("keep", [None, 0, 40])
def test_layers_are_compared_position_by_position_in_any_chunks(attention, chunk, channel, keep):
    shape = attention.Shape(head=6, kv_head=2, channel=channel, value_channel=10, window=None if keep is None else 41)
    calls = layers_of(attention, shape)
    read_ = read(attention, calls, CACHE, chunk, keep=keep)
    assert not set(LAYERED) & set(read_[0])
    for layer in (1, 2):
        above, below = calls[layer], calls[layer - 1]
        wanted = {"key_layer_similarity": cosines(above.key, below.key)}
        wanted["value_layer_similarity"] = cosines(above.value, below.value)
        attention.assert_all_close({name: read_[layer][name] for name in LAYERED}, wanted)
        dense = Dense(above, below=below)
        attention.assert_all_close(
            {name: parse(name).reference(dense)[""].numpy() for name in LAYERED}, wanted, tolerance=1e-9
        )
    for layer, call in enumerate(calls):
        rest = {name: values for name, values in read_[layer].items() if name not in LAYERED}
        attention.assert_all_close(rest, attention.expected(dataclasses.replace(call, phase="prefill")))


@pytest.mark.parametrize("block", [1, 7, 100])
def test_blocks_of_keys_change_nothing(attention, block, monkeypatch):
    calls = layers_of(attention, attention.Shape(kv_head=2, hidden=True), 2)
    whole = read(attention, calls, CACHE, 129)[1]
    monkeypatch.setattr(keys, "BLOCK_KEYS", block)
    got = read(attention, calls, CACHE, 129)[1]
    assert got.keys() == whole.keys()
    for name, values in got.items():
        attention.assert_close(name, values, whole[name], tolerance=1e-6)


@pytest.mark.parametrize("pool_tokens", [1, 16, 100])
@pytest.mark.parametrize("chunk", [15, 129])
def test_pooled_similarities_are_means_and_maxima_of_blocks(attention, pool_tokens, chunk):
    calls = layers_of(attention, attention.Shape(kv_head=2), 2)
    pooled = read(attention, calls, CACHE, chunk, pool_tokens=pool_tokens)[1]
    single = read(attention, calls, CACHE, LENGTH)[1]
    for name in (*LAYERED, "key_neighbour_similarity"):
        starts = range(0, LENGTH, pool_tokens)
        # The first key has no neighbour before it: its block is pooled over the others, and is NaN where it is alone.
        blocks = [single[name][:, b : b + pool_tokens] for b in starts]
        blocks = [block[:, ~np.isnan(block[0])] for block in blocks]
        empty = np.full(2, np.nan)
        mean = np.stack([block.mean(1) if block.size else empty for block in blocks], -1)
        largest = np.stack([block.max(1) if block.size else empty for block in blocks], -1)
        attention.assert_close(name, pooled[name], mean)
        attention.assert_close(f"{name}_max", pooled[f"{name}_max"], largest)
    # What has no axis of keys is not pooled.
    for name in ("key_spectrum", "key_channel_energy", "key_channel_energy_query"):
        attention.assert_close(name, pooled[name], single[name])


def test_coordinates_of_keys_are_the_same_with_and_without_a_neighbour(attention):
    call = attention.make_call(attention.Shape(), 20, key_start=63)
    for pool_tokens in (None, 1, 32, 64):
        scan = Scan(["key_norm", "key_neighbour_similarity"], pool_tokens=pool_tokens)
        scan.update(call)
        results = scan.finish()
        norm, neighbour = results["key_norm"], results["key_neighbour_similarity"]
        dim = norm.dims[-1]
        assert norm.dims == neighbour.dims
        np.testing.assert_array_equal(norm.coordinates[dim], neighbour.coordinates[dim])
        assert norm.values.shape == neighbour.values.shape


def test_planted_layers_have_the_similarity_that_was_planted(attention):
    below = attention.make_call(attention.Shape(kv_head=2), 40)
    turned = torch.cat([-below.value[..., 8:], below.value[..., :8]], -1)
    for key, value, of_keys, of_values in (
        (below.key, below.value, 1.0, 1.0),
        (below.key * 3, -below.value, 1.0, -1.0),
        (below.key.bfloat16().float(), turned, 1.0, 0.0),
        (torch.zeros_like(below.key), below.value, 0.0, 1.0),
    ):
        above = dataclasses.replace(below, layer=1, key=key, value=value)
        got = read(attention, [below, above], LAYERED, 7)[1]
        np.testing.assert_allclose(got["key_layer_similarity"], of_keys, atol=2e-5)
        np.testing.assert_allclose(got["value_layer_similarity"], of_values, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "compared"),
    [
        ({"kv_head": 4}, []),
        ({"kv_head": 2, "channel": 24}, ["value_layer_similarity"]),
        ({"kv_head": 2, "value_channel": 8}, ["key_layer_similarity"]),
    ],
)
def test_layers_of_different_shapes_are_not_compared(attention, fields, compared):
    below = attention.make_call(attention.Shape(kv_head=2), 30)
    above = dataclasses.replace(attention.make_call(attention.Shape(**fields), 30), layer=1)
    top = dataclasses.replace(above, layer=2)
    got = read(attention, [below, above, top], [*LAYERED, "key_norm"], 7)
    assert [name for name in got[1] if name != "key_norm"] == compared
    # The layer after is compared again.
    assert set(LAYERED) < set(got[2])


def test_keys_of_a_layer_that_is_not_the_one_before_count_as_none(attention):
    call = attention.make_call(attention.Shape(), 10)
    far = Scan(LAYERED)
    far.update(call)
    scan = Scan(LAYERED)
    scan.update(dataclasses.replace(call, layer=2), far.hand_over())
    assert not scan.finish()


def test_a_layer_that_stops_handing_over_its_keys_is_an_error(attention):
    call = attention.make_call(attention.Shape(), 30)
    first, second = attention.cut(call, 0, 10), attention.cut(call, 10, 30)
    below, scan = Scan(LAYERED), Scan(LAYERED)
    below.update(first)
    scan.update(dataclasses.replace(first, layer=1), below.hand_over())
    with pytest.raises(ValueError, match="layer 1 no longer hands over"):
        scan.update(dataclasses.replace(second, layer=1))
    below.update(second)
    late = Scan(LAYERED)
    late.update(dataclasses.replace(first, layer=1))
    with pytest.raises(ValueError, match="did not hand over its first keys"):
        late.update(dataclasses.replace(second, layer=1), below.hand_over())


def test_a_chunk_that_is_put_through_again_in_halves_changes_nothing(attention):
    calls = layers_of(attention, attention.Shape(kv_head=2), 3, 60)
    wanted = read(attention, calls, CACHE, 60)
    scans, below = [Scan(CACHE) for _ in calls], None
    # The first layer had the chunk whole when the second ran out of memory: only the layers after it get its halves.
    scans[0].update(attention.cut(calls[0], 0, 60, phase="prefill"), below)
    below = scans[0].hand_over()
    for first in (0, 30):
        for scan, call in zip(scans[1:], calls[1:], strict=True):
            scan.update(attention.cut(call, first, first + 30, phase="prefill"), below)
            below = scan.hand_over()
    for layer, scan in enumerate(scans):
        attention.assert_all_close(arrays(scan), wanted[layer])


def test_keys_of_other_positions_are_an_error(attention):
    call = attention.make_call(attention.Shape(), 30)
    below, scan = Scan(LAYERED), Scan(LAYERED)
    below.update(attention.cut(call, 0, 10))
    with pytest.raises(ValueError, match="keys 0 to 20 are asked for, only 0 to 10 are there"):
        scan.update(dataclasses.replace(attention.cut(call, 0, 20), layer=1), below.hand_over())


@pytest.mark.parametrize("name", ["key_norm", "key_spectrum", "key_neighbour_similarity"])
def test_keys_that_left_the_cache_unseen_are_an_error(attention, name):
    call = attention.make_call(attention.Shape(window=5), 30)
    scan = Scan([name])
    scan.update(attention.cut(call, 0, 10))
    with pytest.raises(ValueError, match="keys 10 to 15 left the cache before they were seen"):
        scan.update(attention.cut(call, 20, 21, keep=5))


def test_nothing_is_handed_over_where_no_statistic_compares_layers(attention):
    scan = Scan(["key_norm", "key_spectrum"])
    scan.update(attention.make_call(attention.Shape(), 10))
    assert scan.hand_over() is None


def test_what_is_handed_over_keeps_no_cache_alive(attention):
    call = attention.make_call(attention.Shape(), 1000)
    scan = Scan(LAYERED)
    scan.update(attention.cut(call, 0, 990))
    scan.update(attention.cut(call, 990, 1000))
    newest = scan.hand_over()
    assert newest.key.untyped_storage().nbytes() == newest.key.numel() * 4
    assert newest.key.shape[1] == 10
    assert scan.hand_over() is None


@pytest.mark.parametrize("window", [1, 5, 32, 500])
@pytest.mark.parametrize("chunk", [1, 15, 129])
def test_channel_energies_give_thinks_scores(attention, window, chunk):
    call = attention.make_call(attention.Shape(head=6, kv_head=2, channel=60), LENGTH)
    scan = Scan([{"key_channel_energy": {"window": window}}])
    for first in range(0, LENGTH - 1, chunk):
        scan.update(attention.cut(call, first, min(first + chunk, LENGTH - 1), phase="prefill"))
    scan.update(attention.cut(call, LENGTH - 1, LENGTH))
    statistic = scan.statistics[0]
    results = arrays(scan)
    got = {suffix: results[statistic.array_name(suffix)] for suffix in statistic.arrays}
    query, key = call.query[:, -window:].double().numpy(), call.key.double().numpy()
    for kv_head in range(2):
        for channel in (0, 31, 59):
            own = query[3 * kv_head : 3 * kv_head + 3, :, channel]
            # The paper's ‖Q_d K_dᵀ‖_F of each query head; kvpress takes the mean of the group's squares.
            norms = [np.linalg.norm(np.outer(each, key[kv_head, :, channel])) ** 2 for each in own]
            wanted = np.mean(norms) / own.shape[1] / LENGTH
            np.testing.assert_allclose(got[""][kv_head, channel] * got["query"][kv_head, channel], wanted, rtol=1e-5)
    assert (got["num_keys"] == LENGTH).all()
    assert (got["num_queries"] == min(window, LENGTH)).all()


def test_what_is_decoded_does_not_change_the_prompts_energy(attention):
    call = attention.make_call(attention.Shape(kv_head=2), 60)
    before, after = Scan(["key_channel_energy"]), Scan(["key_channel_energy"])
    for scan in (before, after):
        scan.update(attention.cut(call, 0, 39, phase="prefill"))
        scan.update(attention.cut(call, 39, 40))
    for query in range(40, 60):
        after.update(attention.cut(call, query, query + 1))
    wanted, got = arrays(before), arrays(after)
    for name, values in wanted.items():
        np.testing.assert_array_equal(got[name], values)


def test_queries_that_were_left_out_of_the_window_are_an_error(attention):
    call = attention.make_call(attention.Shape(), 30)
    scan = Scan(["key_channel_energy"])
    scan.update(attention.cut(call, 0, 10, phase="prefill"))
    with pytest.raises(ValueError, match="queries from 11 on do not follow those before 10"):
        scan.update(attention.cut(call, 11, 12, phase="prefill"))


def test_a_window_of_no_queries_is_refused():
    with pytest.raises(UsageError, match="at least 1"):
        parse({"key_channel_energy": {"window": 0}})


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_broken_head_leaves_the_others_as_they_are(attention, bad):
    calls = layers_of(attention, attention.Shape(kv_head=2), 2, 30)
    whole = read(attention, calls, CACHE, 10)[1]
    broken = dataclasses.replace(calls[1], key=calls[1].key.clone(), value=calls[1].value.clone())
    broken.key[1, 20, 3] = broken.value[1, 20, 3] = bad
    got = read(attention, [calls[0], broken], CACHE, 10)[1]
    for name, values in got.items():
        np.testing.assert_array_equal(values[0], whole[name][0])
        if name in (*LAYERED, "key_neighbour_similarity"):
            assert np.isnan(values[1, 20])
            assert np.isfinite(values[1, [5, 19, 22, 29]]).all()
        elif name.startswith("key_spectrum"):
            assert np.isnan(values[1]).all()
    assert not np.isfinite(got["key_channel_energy"][1, 3])
    assert np.isfinite(np.delete(got["key_channel_energy"][1], 3)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keys_are_read_exactly(attention, dtype):
    calls = layers_of(attention, attention.Shape(kv_head=2, channel=60), 2, 200)
    half = [
        dataclasses.replace(call, query=call.query.to(dtype), key=call.key.to(dtype), value=call.value.to(dtype))
        for call in calls
    ]
    got = read(attention, half, CACHE, 33)[1]
    wanted = attention.expected(dataclasses.replace(half[1], phase="prefill"))
    wanted["key_layer_similarity"] = cosines(half[1].key, half[0].key)
    wanted["value_layer_similarity"] = cosines(half[1].value, half[0].value)
    attention.assert_all_close(got, wanted)


def test_one_call_of_any_length_is_taken_in_blocks(attention):
    length, channel = 3 * BLOCK_KEYS + 5, 32
    key = torch.randn(1, length, channel, dtype=torch.float32).half()
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, torch.Tensor) and tensor.dtype != torch.float16:
                    sizes.append(tensor.untyped_storage().nbytes() // tensor.element_size())
            return out

    scan = Scan([*CACHE, "key_norm", "value_norm"])
    with Sizes():
        scan.update(Call(0, key, key, key, 1.0))
    assert max(sizes) <= BLOCK_KEYS * channel
