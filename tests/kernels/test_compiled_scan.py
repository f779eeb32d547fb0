"""Compiled or not, with the normaliser handed over or not, the scan gives the same numbers."""

from __future__ import annotations

import itertools
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from probe.errors import UsageError
from probe.kernels import blocked_scan, compiled_walk
from probe.kernels import program as programs
from probe.kernels.call import Call
from probe.kernels.entropy import entropy
from probe.kernels.program import has_compiler
from probe.kernels.scan import Scan

needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler here")
SMALL = {"query_block": 16, "key_block": 32}


def scanned(requests, *calls, **options):
    scan = Scan(requests, **options)
    for call in calls:
        scan.update(call)
    return {name: result.values.numpy() for name, result in scan.finish().items()}, scan.engine_name


def handing_over(attention, call):
    """The call with its log-sum-exp from float64, a learned sink's share not in it."""
    log_sum_exp = attention.probabilities(replace(call, sink_logit=None))[2]
    return replace(call, log_sum_exp=torch.from_numpy(log_sum_exp).float())


@pytest.mark.parametrize("options", [{}, {"query_block": 13, "key_block": 29}], ids=["whole rows", "small blocks"])
def test_a_normaliser_that_is_handed_over_is_taken(attention, shape, options):
    call = attention.make_call(shape, 129, seed=4)
    actual, _ = scanned(attention.REQUESTS, handing_over(attention, call), **options)
    attention.assert_all_close(actual, attention.expected(call))


def test_a_normaliser_that_is_handed_over_spares_a_pass(attention, monkeypatch):
    from probe.kernels.scores import Scores

    num_blocks, original = [], Scores.logits
    monkeypatch.setattr(Scores, "logits", lambda *args: num_blocks.append(1) or original(*args))
    call = attention.make_call(attention.Shape(), 64)
    scanned(["entropy", "max_logit"], handing_over(attention, call), query_block=16, key_block=16)
    assert len(num_blocks) == 1 + 2 + 3 + 4


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=[needs_compiler, pytest.mark.slow])])
def test_sharp_heads_are_within_twice_eagers_own_error_with_a_normaliser_handed_over(attention, compiled):
    call = attention.make_call(attention.Shape(sharpness=120.0), 200)
    wanted = attention.expected(call)["entropy"]
    logits = (call.query @ call.key.transpose(1, 2) * call.scale).masked_fill(torch.ones(200, 200).triu(1).bool(), -1e9)
    eager = torch.special.entr(logits.softmax(-1)).sum(-1).numpy()
    given = replace(call, log_sum_exp=logits.logsumexp(-1))
    actual, _ = scanned(["entropy"], given, compiled=compiled)
    assert np.abs(actual["entropy"] - wanted).max() <= 2 * np.abs(eager - wanted).max()


@needs_compiler
def test_a_few_statistics_compiled_equal_an_independent_float64(attention):
    requests = ["max_probability", "max_logit", "mean_distance", "distance_histogram", "received_mass", "attention_map"]
    call = handing_over(attention, attention.make_call(attention.Shape(head=4, kv_head=2), 300, seed=7))
    actual, name = scanned(requests, call, compiled=True, **SMALL)
    assert name == "blocked, compiled"
    attention.assert_all_close(actual, attention.expected(call))
    assert torch.get_num_threads() == 2


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compiled_equals_an_independent_float64(attention):
    # Blocks of all kinds, in chunks whose edges are no block's, with decoded tokens at the end, on two threads.
    call = attention.make_call(attention.Shape(head=8, kv_head=2, sink=True), 300, seed=7)
    wanted = attention.expected(call)
    chunks = [attention.cut(call, *edges) for edges in itertools.pairwise((0, 37, 291, 298, 300))]
    actual, name = scanned(attention.REQUESTS, *chunks, compiled=True, **SMALL)
    assert name == "blocked, compiled"
    attention.assert_all_close(actual, wanted)
    assert torch.get_num_threads() == 2


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("length", [129, 1000])
def test_every_shape_compiled_equals_an_independent_float64(attention, shape, length):
    call = attention.make_call(shape, length, seed=length)
    wanted = attention.expected(call)
    blocks = SMALL if length == 129 else {}
    for given in (call, handing_over(attention, call)):
        actual, name = scanned(attention.REQUESTS, given, compiled=True, **blocks)
        assert name == "blocked, compiled"
        attention.assert_all_close(actual, wanted)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("start", [900, 905])
def test_a_sliding_cache_whose_first_keys_are_gone_agrees_compiled(attention, start):
    call = attention.make_call(attention.Shape(kv_head=2, window=100), 340, key_start=start, num_queries=200)
    actual, name = scanned(attention.REQUESTS, call, compiled=True, **SMALL)
    assert name == "blocked, compiled"
    attention.assert_all_close(actual, attention.expected(call), key_start=start)


@needs_compiler
@pytest.mark.slow
def test_queries_that_see_no_key_count_nothing_compiled(attention):
    call = attention.make_call(attention.Shape(window=3), 40)
    call = replace(call, key=call.key[:, 5:], value=call.value[:, 5:], key_start=5, tokens=None)
    requests = [r for r in attention.REQUESTS if "match_mass" not in str(r)]
    actual, _ = scanned(requests, call, compiled=True, **SMALL)
    attention.assert_all_close(actual, attention.expected(call), key_start=5)


def test_what_cannot_be_compiled_is_computed_without_and_logged_once(attention, monkeypatch, caplog):
    def fails(*args):
        raise RuntimeError("no space left")

    monkeypatch.setattr(programs, "_compile", fails)
    monkeypatch.setattr(programs, "_programs", {})
    monkeypatch.setattr(blocked_scan, "has_compiler", lambda: True)
    call = attention.make_call(attention.Shape(kv_head=2), 70)
    with caplog.at_level(logging.WARNING):
        actual, name = scanned(["entropy", "received_mass"], call, compiled=True)
        scanned(["entropy", "received_mass"], call, compiled=True)
    assert name == "blocked"
    assert [record.getMessage() for record in caplog.records] == [
        "the scan goes on without a compiler, slower and with the same numbers: RuntimeError: no space left"
    ]
    attention.assert_all_close(actual, attention.expected(call))


def test_threads_of_a_walk_run_alone_and_leave_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    with compiled_walk._workers(3) as pool:
        assert {pool.submit(torch.get_num_threads).result() for _ in range(9)} == {1}
        with ThreadPoolExecutor(1) as elsewhere:
            assert elsewhere.submit(torch.get_num_threads).result() == before
    assert torch.get_num_threads() == before


def test_small_calls_and_machines_without_a_compiler_are_left_alone(attention, monkeypatch):
    asked = []
    monkeypatch.setattr(blocked_scan.BlockPrograms, "of", lambda *args, **options: asked.append(args))
    call = attention.make_call(attention.Shape(), 70)
    assert scanned(["entropy"], call)[1] == "blocked"
    assert scanned(["entropy"], attention.cut(call, 60, 70), compiled=True)[1] == "blocked"
    assert scanned(["log_sum_exp"], call, compiled=True)[1] == "blocked"
    monkeypatch.setattr(blocked_scan, "has_compiler", lambda: False)
    assert scanned(["entropy"], call, compiled=True)[1] == "blocked"
    assert not asked
    monkeypatch.setattr(blocked_scan, "has_compiler", lambda: True)
    monkeypatch.setattr(blocked_scan, "AUTO_FROM_SCORES", 4 * 70 * 70)
    assert scanned(["entropy"], call)[1] == "blocked"
    assert len(asked) == 1


def test_match_mass_without_tokens_says_what_it_needs_compiled_too(attention):
    call = replace(attention.make_call(attention.Shape(), 70), tokens=None)
    with pytest.raises(UsageError, match="token ids"):
        scanned(["match_mass"], call, compiled=True)


class at_home(entropy):
    """The entropy, by a block's own slices."""

    def blocked(self, block):
        return {"": super().blocked(block)[""] * (block.query_start >= 0)}


@needs_compiler
def test_a_statistic_that_asks_where_a_block_lies_is_computed_without_a_compiler(attention, caplog):
    call: Call = attention.make_call(attention.Shape(), 70)
    actual, name = scanned([at_home()], call, compiled=True)
    assert name == "blocked"
    assert "query_start" in caplog.text
    attention.assert_close("entropy", actual["at_home"], attention.expected(call)["entropy"])


@needs_compiler
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_queries_of_any_layout_are_compiled(attention, scale):
    # As a model's projection leaves them where nothing rotates or scales them: heads next to one another.
    call = replace(attention.make_call(attention.Shape(), 300, seed=8), scale=scale)
    apart = replace(call, query=call.query.transpose(0, 1).contiguous().transpose(0, 1))
    actual, name = scanned(["max_probability", "mean_distance"], apart, compiled=True, **SMALL)
    assert name == "blocked, compiled"
    attention.assert_all_close(actual, attention.expected(call))
