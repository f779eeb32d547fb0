"""One scan gives the same answer however its input is cut, never allocates n×n, and computes only what is asked for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from probe.errors import UsageError
from probe.kernels.call import Call
from probe.kernels.entropy import entropy
from probe.kernels.scan import Scan
from probe.kernels.scores import Scores
from probe.kernels.statistic import parse
from probe.kernels.walk import Walk

LENGTH = 70


def finished(scan):
    return {name: result.values.numpy() for name, result in scan.finish().items()}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.sets(st.integers(1, LENGTH - 1), max_size=6),
    decoded=st.integers(0, 4),
    query_block=st.integers(6, 80) | st.none(),
    key_block=st.integers(9, 80) | st.none(),
    window=st.sampled_from([None, 9, 40]),
    sink=st.booleans(),
)
def test_any_cut_of_queries_and_keys_gives_the_same_answer(
    attention, cuts, decoded, query_block, key_block, window, sink
):
    shape = attention.Shape(kv_head=2, window=window, sink=sink)
    call, spans = attention.make_call(shape, LENGTH, seed=3), attention.make_spans(LENGTH)
    edges = sorted({0, *cuts, *range(LENGTH - decoded, LENGTH), LENGTH})
    scan = Scan(attention.REQUESTS, spans=spans, query_block=query_block, key_block=key_block)
    for first, stop in itertools.pairwise(edges):
        # With a window the cache slides, as transformers' does: only what the chunk's first query can see is kept.
        scan.update(attention.cut(call, first, stop, keep=None if window is None else window - 1))
    wanted = attention.expected(call, spans)
    actual = finished(scan)
    attention.assert_all_close(actual, wanted)
    assert actual["span_mass"].shape == (4, LENGTH, 3)


@pytest.mark.parametrize("pool_tokens", [4, 16, 100])
@pytest.mark.parametrize("edges", [(0, 70), (0, 1, 2, 33, 64, 69, 70)])
def test_pooling_is_the_mean_and_the_maximum_of_blocks(attention, pool_tokens, edges):
    call = attention.make_call(attention.Shape(kv_head=2), LENGTH)
    requests = ["entropy", "max_probability", "received_mass", "key_norm"]
    scan = Scan(requests, pool_tokens=pool_tokens)
    for first, stop in itertools.pairwise(edges):
        scan.update(attention.cut(call, first, stop))
    actual, wanted = scan.finish(), attention.expected(call)
    blocks = [slice(b, b + pool_tokens) for b in range(0, LENGTH, pool_tokens)]
    for name in ("entropy", "received_mass", "key_norm"):
        mean = np.stack([wanted[name][:, b].mean(1) for b in blocks], -1)
        largest = np.stack([wanted[name][:, b].max(1) for b in blocks], -1)
        attention.assert_close(name, actual[name].values.numpy(), mean)
        attention.assert_close(name, actual[f"{name}_max"].values.numpy(), largest)
    assert actual["entropy"].dims == ("head", "query_block")
    assert actual["received_mass"].dims == ("head", "key_block")
    assert actual["received_mass_num_queries"].dims == ("key_block",)
    assert (actual["entropy"].coordinates["query_block"] == np.arange(0, LENGTH, pool_tokens)).all()
    for index, b in enumerate(blocks):
        best = wanted["max_probability"][:, b].argmax(1)
        key = np.take_along_axis(wanted["argmax_key"][:, b], best[:, None], 1)[:, 0]
        assert (actual["argmax_key"].values[:, index].numpy() == key).all()
    assert "argmax_key_max" not in actual


@pytest.mark.parametrize("start", [6, 16])
def test_pooled_blocks_stand_at_multiples_of_their_size_wherever_the_scan_begins(attention, start):
    call = attention.make_call(attention.Shape(), 50)
    scan = Scan(["entropy"], pool_tokens=8)
    scan.update(attention.cut(call, start, 50))
    result = scan.finish()["entropy"]
    assert result.coordinates["query_block"][0] == start // 8 * 8
    wanted = attention.expected(call)["entropy"][:, start : (start // 8 + 1) * 8].mean(1)
    attention.assert_close("entropy", result.values[:, 0].numpy(), wanted)


class LargestAllocation(TorchDispatchMode):
    """Remembers the largest number of elements that any operation gave back."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, torch.Tensor):
                type(self).largest = max(self.largest, value.untyped_storage().nbytes() // value.element_size())
        return out


@pytest.mark.parametrize("window", [None, 512])
def test_nothing_of_the_size_n_by_n_is_ever_allocated(window):
    length = 8192
    key = torch.randn(1, length, 8)
    call = Call(0, torch.randn(1, length, 8), key, key, 1.0, window=window, tokens=torch.zeros(length, dtype=torch.int))
    requests = ["entropy", "max_probability", "received_mass", "distance_histogram", "offset_mass", "attention_map"]
    LargestAllocation.largest = 0
    with LargestAllocation():
        scan = Scan([*requests, "mean_distance", "match_mass", "recent_mass"])
        scan.update(call)
        scan.finish()
    assert LargestAllocation.largest < length * length // 8


def test_what_is_not_asked_for_is_not_computed(attention, monkeypatch):
    logits: list[tuple[int, int]] = []
    original = Scores.logits

    def counted(self, query, key, query_start, key_start, out):
        logits.append((query.shape[1] // self.group, key.shape[1]))
        return original(self, query, key, query_start, key_start, out)

    monkeypatch.setattr(Scores, "logits", counted)
    called = []
    monkeypatch.setattr(entropy, "blocked", lambda self, block: called.append(block))
    call = attention.make_call(attention.Shape(), 40)
    scan = Scan(["span_mass", "key_norm"])
    scan.update(attention.cut(call, 0, 39, phase="prefill"))
    assert not logits
    scan.update(attention.cut(call, 39, 40))
    assert logits == [(1, 40)]
    logits.clear()
    Scan(["key_norm", "value_norm"]).update(call)
    assert not logits
    assert not called


def test_only_the_queries_within_the_horizon_are_scanned(attention, monkeypatch):
    starts = []
    original = Walk._of_queries

    def counted(self, scores, start, *rest):
        starts.append(start)
        return original(self, scores, start, *rest)

    monkeypatch.setattr(Walk, "_of_queries", counted)
    Scan([{"received_mass": {"horizon": 8}}], query_block=4).update(attention.make_call(attention.Shape(), 4000))
    assert max(starts) <= 8


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_broken_input_is_visible_where_it_is(attention, bad):
    call = attention.make_call(attention.Shape(kv_head=2), 30)
    call.key[1, 20, 0] = bad
    scan = Scan(["entropy", "log_sum_exp", "max_probability", "received_mass", "key_norm"])
    scan.update(call)
    actual = finished(scan)
    for name in ("entropy", "max_probability"):
        broken = ~np.isfinite(actual[name])
        assert not broken[:2].any()
        assert not broken[:, :20].any()
        assert broken[2:, 20:].any()
    assert not np.isfinite(actual["key_norm"][1, 20])
    assert not np.isfinite(actual["received_mass"][2:]).all()


def test_queries_that_do_not_follow_are_refused(attention):
    call = attention.make_call(attention.Shape(), 30)
    scan = Scan(["entropy"])
    scan.update(attention.cut(call, 0, 10))
    with pytest.raises(ValueError, match="do not follow"):
        scan.update(attention.cut(call, 11, 12))


def test_match_mass_without_tokens_says_what_it_needs(attention):
    call = attention.make_call(attention.Shape(), 5)
    scan = Scan(["match_mass"])
    with pytest.raises(UsageError, match="token ids"):
        scan.update(Call(**{**vars(call), "tokens": None}))


def test_a_scan_inside_autocast_and_inference_mode_keeps_float32(attention):
    call = attention.make_call(attention.Shape(kv_head=2), 60)
    scan = Scan(["entropy", "received_mass"])
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        scan.update(attention.cut(call, 0, 50))
    scan.update(attention.cut(call, 50, 60))
    attention.assert_all_close(finished(scan), attention.expected(call))


def test_the_callers_tensors_are_left_as_they_were(attention):
    call = attention.make_call(attention.Shape(softcap=3.0, sink=True), 60)
    before = [tensor.clone() for tensor in (call.query, call.key, call.value, call.sink_logit)]
    Scan(attention.REQUESTS).update(call)
    assert all(
        torch.equal(a, b) for a, b in zip(before, (call.query, call.key, call.value, call.sink_logit), strict=True)
    )


def test_results_are_labelled(attention):
    call, spans = attention.make_call(attention.Shape(kv_head=2), 30), attention.make_spans(30)
    scan = Scan(attention.REQUESTS, spans=spans)
    scan.update(call)
    for name, result in scan.finish().items():
        assert len(result.dims) == result.values.ndim, name
        assert result.values.device.type == "cpu"
        assert result.values.dtype in (torch.float32, torch.int64), name
        assert result.definition, name
        assert result.source, name
        for dim, coordinate in result.coordinates.items():
            assert len(coordinate) == result.values.shape[result.dims.index(dim)], (name, dim)
        assert set(result.dims) - set(result.coordinates) <= {"head", "kv_head", "channel", "component"}, name
    results = scan.finish()
    assert list(results["span_mass"].coordinates["span"]) == ["needle", "question", "nothing"]
    assert list(results["distance_histogram"].coordinates["distance_bin"]) == [0, 1, 2, 4, 8, 16]
    assert list(results["offset_mass_num_offset_2_others_7_500"].coordinates["offset"]) == [0, 1, 7, 500]
    assert "horizon = 64" in results["received_mass_horizon_64"].definition


def test_an_attention_map_grows_coarser_as_decoding_goes_on(attention):
    call = attention.make_call(attention.Shape(kv_head=2), 70)
    scan = Scan([{"attention_map": {"grid": 8}}])
    sizes = set()
    for query in range(70):
        scan.update(attention.cut(call, query, query + 1))
        sizes.add(scan._tallies["attention_map_grid_8"].tokens)
    assert sizes == {1, 2, 4, 8, 16}
    attention.assert_all_close(finished(scan), attention.expected(call))


def test_a_residual_statistic_is_refused_by_name():
    with pytest.raises(ValueError, match="residual_norm"):
        Scan(["entropy", "residual_norm"])


def test_a_request_twice_is_computed_once(attention):
    scan = Scan(["entropy", {"entropy": {}}, parse("entropy")])
    assert len(scan.statistics) == 1


@pytest.mark.parametrize("chunk", [1, 15, 70])
def test_the_reference_engine_is_the_definition_however_the_prompt_was_cut(attention, shape, chunk):
    call = attention.make_call(shape, LENGTH, seed=5)
    spans = attention.make_spans(LENGTH)
    if not shape.causal:
        chunk = LENGTH
    scan = Scan(attention.REQUESTS, spans=spans, engine="reference")
    for first in range(0, LENGTH, chunk):
        # What a sliding cache holds, or all of them.
        scan.update(attention.cut(call, first, min(first + chunk, LENGTH), keep=shape.window if shape.causal else None))
    results = scan.finish()
    assert scan.engine_name == "reference"
    wanted = attention.expected(call, spans)
    for name, result in results.items():
        kind = parse(next(r for r in attention.REQUESTS if parse(r).definition in result.definition)).kind
        # Rows and keys have no engine of their own.
        attention.assert_all_close({name: result.values.numpy()}, wanted, tolerance=1e-9 if kind == "scan" else 1e-5)
    assert {"attention_map", "entropy", "received_mass"} <= results.keys()
    assert len(results["attention_map"].coordinates["query_block"]) == results["attention_map"].values.shape[1]


def test_an_engine_that_does_not_exist_or_cannot_run_is_refused_by_name(attention, monkeypatch):
    call = attention.make_call(attention.Shape(), 5)
    with pytest.raises(UsageError, match="no engine 'fast'; there are auto, triton, blocked, reference"):
        Scan(["entropy"], engine="fast").update(call)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UsageError, match="needs a GPU"):
        Scan(["entropy"], engine="triton").update(call)
    scan = Scan(["entropy"])
    assert scan.engine_name is None
    scan.update(call)
    assert scan.engine_name == "blocked"
