"""The Triton scan equals float64: interpreted where there is no GPU, compiled where there is one."""

from __future__ import annotations

import dataclasses
import itertools
import sys

import numpy as np
import pytest
import torch

from probe.errors import UsageError
from probe.kernels.call import Call
from probe.kernels.entropy import entropy
from probe.kernels.scan import Scan
from probe.kernels.statistic import parse

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCKS = {"query_block": 16, "key_block": 32}
"""Small, so that short prompts have tiles of every kind."""
WIDE = {"query_block": 64, "key_block": 64}
"""Few tiles: the interpreter takes milliseconds for each."""


def on_device(call: Call) -> Call:
    moved = {name: value.to(DEVICE) for name, value in vars(call).items() if isinstance(value, torch.Tensor)}
    return dataclasses.replace(call, **moved)


def scanned(calls, requests, **options):
    scan = Scan(requests, engine="triton", **options)
    for call in calls if isinstance(calls, list) else [calls]:
        scan.update(on_device(call))
    assert scan.engine_name.startswith("triton")
    return {name: result.values.cpu().numpy() for name, result in scan.finish().items()}


@pytest.fixture
def requests(attention):
    return [request for request in attention.REQUESTS if parse(request).kind == "scan"]


@pytest.fixture(autouse=True)
def unwritten_memory_is_not_a_number(monkeypatch):
    def empty(*size, dtype=torch.float32, device=None, **options):
        fill = torch.nan if dtype.is_floating_point else torch.iinfo(dtype).min
        return torch.full(size[0] if isinstance(size[0], tuple) else size, fill, dtype=dtype, device=device, **options)

    for module in ("probe.kernels.epilogue", "probe.kernels.triton_launch"):
        __import__(module)
        monkeypatch.setattr(sys.modules[module].torch, "empty", empty)


@pytest.mark.parametrize("length", [1, 15, 129])
def test_every_statistic_equals_an_independent_float64(attention, requests, shape, length):
    call = attention.make_call(shape, length, seed=length)
    blocks = WIDE if length > 100 else BLOCKS
    attention.assert_all_close(scanned(call, requests, **blocks), attention.expected(call))


def test_small_tiles_see_everything(attention, requests):
    call = attention.make_call(attention.Shape(head=2, kv_head=1, window=50), 80, seed=8)
    attention.assert_all_close(scanned(call, requests, **BLOCKS), attention.expected(call))


@pytest.mark.slow
@pytest.mark.parametrize("length", [16, 17, 127, 128, 1000])
def test_longer_prompts_agree_at_the_default_block_sizes(attention, requests, shape, length):
    call = attention.make_call(shape, length, seed=length, num_queries=min(length, 200))
    attention.assert_all_close(scanned(call, requests), attention.expected(call))


@pytest.mark.parametrize("channel", [32, 60, 80, 96, 256])
def test_heads_of_any_width_agree(attention, requests, channel):
    shape = attention.Shape(head=3, kv_head=1, channel=channel, value_channel=channel)
    call = attention.make_call(shape, 40, seed=channel)
    attention.assert_all_close(scanned(call, requests, **BLOCKS), attention.expected(call))


@pytest.mark.parametrize("window", [None, pytest.param(40, marks=pytest.mark.slow)])
def test_chunks_against_a_longer_cache_agree(attention, requests, window):
    call = attention.make_call(attention.Shape(head=4, kv_head=2, window=window), 100, seed=1)
    edges = itertools.pairwise((0, 17, 99, 100))
    chunks = [attention.cut(call, first, stop, keep=window) for first, stop in edges]
    attention.assert_all_close(scanned(chunks, requests, **WIDE), attention.expected(call))


def test_a_call_far_into_a_prompt_agrees(attention, requests):
    # Positions beyond what 16 bits hold, at no multiple of a block.
    call = attention.make_call(attention.Shape(kv_head=2, window=50), 90, key_start=70_001, num_queries=45)
    attention.assert_all_close(scanned(call, requests, **BLOCKS), attention.expected(call), key_start=70_001)


def test_keys_more_than_two_to_the_31_elements_apart_are_found(attention):
    call = attention.make_call(attention.Shape(head=2, kv_head=2), 20)
    apart = 2**31 + 64
    # Virtual memory, of which two pages are ever touched.
    memory = torch.empty_strided((apart + 20 * 16,), (1,), dtype=torch.float32, device=DEVICE)
    key = memory.as_strided((2, 20, 16), (apart, 16, 1))
    key.copy_(call.key)
    far = dataclasses.replace(call, key=key)
    attention.assert_all_close(scanned(far, ["entropy", "received_mass"], **BLOCKS), attention.expected(call))


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("hidden", [False, True])
def test_a_normaliser_that_was_handed_over_gives_the_same(attention, requests, sink, hidden):
    call = attention.make_call(attention.Shape(kv_head=2, sink=sink, hidden=hidden), 70, seed=2)
    s = attention.probabilities(call)[1]
    log_sum_exp = torch.from_numpy(np.logaddexp.reduce(s, -1)).float()
    wanted = attention.expected(call)
    attention.assert_all_close(scanned(dataclasses.replace(call, log_sum_exp=log_sum_exp), requests, **BLOCKS), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["grouped 4:1", "window", "softcap", "learned sinks", "ALiBi"])
def test_half_precision_is_within_one_and_a_half_of_eagers_own_error(attention, all_shapes, kind, dtype):
    call = attention.make_call(all_shapes[kind], 100)
    half = dataclasses.replace(call, query=call.query.to(dtype), key=call.key.to(dtype), value=call.value.to(dtype))
    attention.assert_no_worse_than_eager(scanned(half, attention.HALF_PRECISION, **WIDE), half)


def test_decoded_tokens_after_a_prefill_agree_at_the_default_block_sizes(attention, requests):
    # Fewer than sixteen queries go another way, and add to the same sums.
    call = attention.make_call(attention.Shape(head=2, kv_head=1), 36, seed=9)
    chunks = [attention.cut(call, 0, 34, phase="prefill"), attention.cut(call, 34, 35), attention.cut(call, 35, 36)]
    attention.assert_all_close(scanned(chunks, requests), attention.expected(call))


def test_a_softcap_of_fifty_keeps_the_digits_of_small_logits(attention):
    call = attention.make_call(attention.Shape(head=2, kv_head=2, softcap=50.0, sharpness=0.3), 60, seed=10)
    attention.assert_all_close(
        scanned(call, ["max_logit", "log_sum_exp", "entropy"], **WIDE), attention.expected(call), tolerance=2e-6
    )


def test_many_equal_scores_do_not_drift():
    # Log n in closed form; every tile adds the same, which plain float32 rounds to one side.
    length = 70_000
    key = torch.zeros(1, length, 16)
    call = Call(0, torch.zeros(1, 16, 16), key, key, scale=1.0, query_start=length - 16)
    actual = scanned(call, ["entropy", "log_sum_exp"], query_block=16, key_block=64)
    seen = np.log(np.arange(length - 15, length + 1))
    np.testing.assert_allclose(actual["log_sum_exp"][0], seen, rtol=2e-7)
    np.testing.assert_allclose(actual["entropy"][0], seen, rtol=2e-6)


@pytest.mark.parametrize("how", ["older", "newer"])
def test_the_users_own_precision_of_products_holds_again_afterwards(attention, how):
    call = attention.make_call(attention.Shape(), 20)
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    try:
        if how == "older":
            torch.set_float32_matmul_precision("high")
        else:
            products.fp32_precision = "tf32"
        attention.assert_all_close(scanned(call, ["entropy"], **BLOCKS), attention.expected(call))
        assert products.fp32_precision == "tf32"
    finally:
        products.fp32_precision = "ieee" if how == "older" else before


def test_each_statistic_alone_is_what_it_is_beside_the_others(attention, requests):
    call = attention.make_call(attention.Shape(head=2, kv_head=1), 40, seed=4)
    together = scanned(call, requests, **BLOCKS)
    for request in requests:
        for name, values in scanned(call, [request], **BLOCKS).items():
            # The map makes tiles narrower, so that sums are added up in another order.
            np.testing.assert_allclose(values, together[name], rtol=1e-6, atol=1e-6)


def test_deterministic_sums_are_equal_bit_for_bit_and_right(attention, requests):
    call = attention.make_call(attention.Shape(head=4, kv_head=2), 60, seed=6)
    first, second = (scanned(call, requests, deterministic=True, **BLOCKS) for _ in range(2))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    attention.assert_all_close(first, attention.expected(call))


# The interpreter computes with numpy, which warns of what is planted here.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_head_that_is_not_finite_says_so_and_leaves_the_others_intact(attention, requests, deterministic, bad):
    call = attention.make_call(attention.Shape(), 60, seed=7)
    wanted = attention.expected(call)
    query = call.query.clone()
    query[1, 30] = bad
    broken = dataclasses.replace(call, query=query)
    actual = scanned(broken, requests, deterministic=deterministic, **BLOCKS)
    others = [0, 2, 3]
    shared = {"received_mass_num_queries", "received_mass_horizon_64_num_queries"}
    whole = {name: values for name, values in wanted.items() if name in shared}
    attention.assert_all_close(
        {name: values if name in shared else values[others] for name, values in actual.items()},
        {name: values[others] for name, values in wanted.items() if name not in shared} | whole,
    )
    for name in ("entropy", "max_probability", "max_logit", "log_sum_exp", "mean_distance"):
        assert np.isnan(actual[name][1, 30]), name
    for name in ("received_mass", "attention_map", "attention_map_max", "distance_histogram", "offset_mass"):
        assert np.isnan(actual[name][1]).any(), name


def test_a_statistic_without_an_epilogue_is_left_to_the_blocked_scan_which_is_said(attention, monkeypatch):
    monkeypatch.setattr(entropy, "on_triton", lambda self: ())
    call = attention.make_call(attention.Shape(), 40)
    scan = Scan(["entropy", "mean_distance"], engine="triton", **BLOCKS)
    scan.update(on_device(call))
    assert scan.engine_name.endswith("blocked for entropy")
    results = {name: result.values.cpu().numpy() for name, result in scan.finish().items()}
    attention.assert_all_close(results, attention.expected(call))


def test_what_it_cannot_take_is_refused(attention):
    call = attention.make_call(attention.Shape(), 20)
    with pytest.raises(UsageError, match="powers of two, not 13"):
        scanned(call, ["entropy"], query_block=13)
    with pytest.raises(UsageError, match=r"not torch\.float64"):
        scanned(dataclasses.replace(call, query=call.query.double()), ["entropy"])
    with pytest.raises(ValueError, match="softcap and ALiBi"):
        scanned(dataclasses.replace(call, softcap=5.0, alibi_slope=torch.ones(4)), ["entropy"])
