"""A prompt spread over ranks has the statistics of one process: float64, row by row, that shares no code with it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from probe.kernels.call import Call
from probe.kernels.statistic import parse
from tests.kernels import rank_processes

ROWS = 2
"""Queries of decoding at the end of each prompt."""
REFUSED = {"sparse_shape_mass", "rope_share", "rope_correlation", "window_mass"}


AT_THE_END = ("key_channel_energy", "window_mass")
ROW_ARRAYS = ("span_mass", "output_norm_share", "span_logit", "span_logit_all", "top_keys", "top_keys_probability")


def requests(attention, call: Call):
    return [request for request in attention.REQUESTS if parse(request).name() not in REFUSED]


def cut_unevenly(length: int, size: int) -> list[int]:
    """Cut into stretches of which each is about half as long as the one before, the last of them empty at times."""
    cuts = [0]
    for _ in range(size - 1):
        cuts.append(min(length, cuts[-1] + (length - cuts[-1] + 1) // 2))
    return [*cuts, length]


def case_of(attention, shape, length: int, size: int, seed: int):
    """A prompt, then decoded tokens: their calls, where they are cut, and what is asked of them."""
    call = attention.make_call(shape, length, seed=seed)
    rows = min(ROWS, length) if shape.causal else length
    if not shape.causal:
        cuts = [cut_unevenly(length, size)]
        return call, ([dataclasses.replace(call, phase="prefill")], cuts, requests(attention, call), {})
    prompt = attention.cut(call, 0, length - rows, phase="prefill")
    calls, cuts = ([prompt], [cut_unevenly(length - rows, size)]) if length > rows else ([], [])
    owner = max((r for r in range(size) if cuts and cuts[0][r] < cuts[0][r + 1]), default=0)
    for done in range(length - rows, length):
        calls.append(attention.cut(call, done, done + 1))
        before = cuts[0][:-1] if length > rows else [0] * size
        cuts.append([*(min(c, done) for c in before[: owner + 1]), *[done + 1] * (size - owner)])
    return call, (calls, cuts, requests(attention, call), {"spans": attention.make_spans(length)})


def check(attention, folder, name, call):
    """Hold what the ranks wrote against float64 over the whole prompt."""
    with np.load(folder / f"{name}.npz") as found:
        got = dict(found)
    rows = min(ROWS, call.num_keys) if call.causal else 0
    wanted = attention.expected(call, attention.make_spans(call.num_keys))
    # What ends with row 0's query.
    prompt = attention.cut(call, 0, call.num_keys - max(rows - 1, 0), phase="prefill")
    at_the_end = attention.expected(prompt)
    wanted |= {each: values for each, values in at_the_end.items() if each.startswith(AT_THE_END)}
    of_rows = {each: got.pop(each) for each in ROW_ARRAYS if each in got}
    attention.assert_all_close(got, wanted)
    last = {each: wanted[each][:, -rows:] for each in (*ROW_ARRAYS, "p") if each != "top_keys"}
    attention.assert_all_close(of_rows, last)
    kinds = {parse(request).key: parse(request).kind for request in requests(attention, call)}
    missing = {key for key, kind in kinds.items() if key not in got and kind != "row"}
    alone = {"key_neighbour_similarity"} if call.num_keys == 1 else set()
    assert missing <= alone | {"key_layer_similarity", "value_layer_similarity"}
    assert rows == 0 or of_rows.keys() == set(ROW_ARRAYS)


def spread(attention, tmp_path, size, prompts):
    """Scan prompts `[(shape, length)]` over `size` ranks, and check each."""
    cases, calls = {}, {}
    for number, (shape, length) in enumerate(prompts):
        calls[str(number)], cases[str(number)] = case_of(attention, shape, length, size, number)
    rank_processes.run(size, tmp_path, rank_processes.scan_cases, cases)
    for number, call in calls.items():
        check(attention, tmp_path, number, call)


def test_every_kind_of_attention_over_two_ranks_equals_float64(attention, all_shapes, tmp_path):
    spread(attention, tmp_path, 2, [(shape, 33) for shape in all_shapes.values()])


def test_four_ranks_of_which_some_hold_nothing_equal_float64(attention, all_shapes, tmp_path):
    grouped, narrow = attention.Shape(head=8, kv_head=2), attention.Shape(head=6, kv_head=2, channel=60)
    prompts = [(all_shapes["everything hides keys"], 67), (all_shapes["bidirectional packed documents and window"], 67)]
    prompts += [(grouped, 1), (grouped, 15), (narrow, 129)]
    spread(attention, tmp_path, 4, prompts)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_every_kind_of_attention_over_ranks_at_every_length(attention, all_shapes, tmp_path, size):
    spread(attention, tmp_path, size, [(s, length) for s in all_shapes.values() for length in (1, 15, 129, 1000)])
