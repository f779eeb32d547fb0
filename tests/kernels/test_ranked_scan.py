"""A prompt spread over ranks has the statistics of one process: float64, row by row, that shares no code with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probe.errors import UsageError
from probe.kernels.ranked_scan import merges, refuse_what_does_not_merge
from probe.kernels.ring import Ring
from probe.kernels.statistic import names, parse
from probe.kernels.tally import Tally
from tests.kernels import rank_processes

REFUSED = {"sparse_shape_mass", "rope_share", "rope_correlation", "window_mass"}
AT_THE_END = ("key_channel_energy", "window_mass")
ROW_ARRAYS = ("span_mass", "output_norm_share", "span_logit", "span_logit_all", "top_keys", "top_keys_probability")


def check(attention, folder, name, call):
    """Hold what the ranks wrote against float64 over the whole prompt."""
    with np.load(folder / f"{name}.npz") as found:
        got = dict(found)
    rows = min(rank_processes.ROWS, call.num_keys) if call.causal else 0
    wanted = attention.expected(call, attention.make_spans(call.num_keys))
    # What ends with row 0's query.
    prompt = attention.cut(call, 0, call.num_keys - max(rows - 1, 0), phase="prefill")
    at_the_end = attention.expected(prompt)
    wanted |= {each: values for each, values in at_the_end.items() if each.startswith(AT_THE_END)}
    of_rows = {each: got.pop(each) for each in ROW_ARRAYS if each in got}
    attention.assert_all_close(got, wanted)
    last = {each: wanted[each][:, -rows:] for each in (*ROW_ARRAYS, "p") if each != "top_keys"}
    attention.assert_all_close(of_rows, last)
    kinds = {parse(request).key: parse(request).kind for request in rank_processes.mergeable()}
    missing = {key for key, kind in kinds.items() if key not in got and kind != "row"}
    alone = {"key_neighbour_similarity"} if call.num_keys == 1 else set()
    assert missing <= alone | {"key_layer_similarity", "value_layer_similarity"}
    assert rows == 0 or of_rows.keys() == set(ROW_ARRAYS)


def spread(attention, tmp_path, size, prompts):
    """Scan prompts `[(shape, length)]` over `size` ranks, and check each."""
    rank_processes.run(size, tmp_path, rank_processes.scan_prompts, prompts)
    for number, (shape, length) in enumerate(prompts):
        check(attention, tmp_path, number, attention.make_call(shape, length, seed=number))


def test_two_ranks_equal_float64(attention, all_shapes, tmp_path):
    names = ("learned sinks and window", "softcap", "bidirectional relative bias", "packed documents")
    spread(attention, tmp_path, 2, [(all_shapes[name], 33) for name in names])


def test_four_ranks_of_which_some_hold_nothing_equal_float64(attention, all_shapes, tmp_path):
    grouped, narrow = attention.Shape(head=8, kv_head=2), attention.Shape(head=6, kv_head=2, channel=60)
    prompts = [(all_shapes["everything hides keys"], 67), (all_shapes["bidirectional packed documents and window"], 67)]
    prompts += [(grouped, 1), (grouped, 15), (narrow, 129)]
    spread(attention, tmp_path, 4, prompts)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_every_kind_of_attention_over_ranks_at_every_length(attention, all_shapes, tmp_path, size):
    spread(attention, tmp_path, size, [(s, length) for s in all_shapes.values() for length in (1, 15, 129, 1000)])


def said(folder, ranks):
    return {rank: (folder / f"said-{rank}").read_text(encoding="utf-8") for rank in ranks}


def test_a_rank_that_dies_is_named_by_those_that_need_it(tmp_path):
    rank_processes.run(3, tmp_path, rank_processes.leave_early, 1)
    for rank, words in said(tmp_path, [0, 2]).items():
        assert f"rank {rank} of 3 waited for rank 1 " in words


def test_a_rank_that_says_nothing_is_given_up_and_named(tmp_path):
    rank_processes.run(2, tmp_path, rank_processes.keep_waiting, 1)
    assert (
        "rank 0 of 2 waited for rank 1 (what it brings), which is gone, or did not answer within 1 s"
        in said(tmp_path, [0])[0]
    )


def test_calls_that_do_not_make_one_are_refused_by_every_rank(tmp_path):
    rank_processes.run(2, tmp_path, rank_processes.disagree)
    for words in said(tmp_path, [0, 1]).values():
        assert words.splitlines() == [
            "window: the ranks' calls differ in window: [2, 3]",
            "gap: rank 1's keys begin at 3, those before it end at 2",
            "queries: rank 0 has the queries 7 to 9 and not their own keys",
            "rows: the queries of a call of decoded tokens are on more than one rank",
        ]


def test_stretches_are_sent_as_far_as_they_are_seen(tmp_path):
    asked = {"causal": (None, True), "windowed": (5, True), "bidirectional": (None, False)}
    rank_processes.run(4, tmp_path, rank_processes.count_traffic, 32, list(asked.values()))
    # 8 keys of 2 heads × 8 channels of 2 bytes: alone in the first pass, with their values in the second.
    stretch = 3 * 8 * 2 * 8 * 2
    # Rank r has its own and those before it to hand on; the last one none where nobody looks ahead.
    wanted = zip([stretch, 2 * stretch, 3 * stretch, 0], [stretch] * 3 + [0], [3 * stretch] * 4, strict=True)
    for rank, each in enumerate(wanted):
        assert (tmp_path / f"sent-{rank}").read_text() == " ".join(map(str, each))


def test_what_does_not_merge_is_refused_by_name():
    asked = [parse(name) for name in names() if parse(name).kind in ("scan", "row", "key")]
    refused = {each.name() for each in asked if not merges(each)}
    assert refused == REFUSED
    with pytest.raises(UsageError, match="do not merge over ranks: rope_share, sparse_shape_mass"):
        refuse_what_does_not_merge([parse("entropy"), parse("rope_share"), parse("sparse_shape_mass")])
    with pytest.raises(UsageError, match=r"torch\.distributed has not been started"):
        Ring()


def test_a_tally_that_does_not_say_how_it_merges_is_refused():
    class own_sum(Tally):
        def put(self, parts, key_start):
            super().put(parts, key_start)

    assert not own_sum(parse("received_mass")).merges
    assert Tally(parse("offset_mass")).merges


def test_of_equal_maxima_the_lowest_key_stays_in_whatever_order_stretches_come():
    statistic = parse("max_probability")
    values = {"": [[0.5, 0.5, 0.2, 0.0, 0.0]], "argmax_key": [[7, 3, 1, -1, 4]]}
    other = {"": [[0.5, 0.5, 0.3, 0.0, 0.0]], "argmax_key": [[2, 9, 8, 6, -1]]}
    values, other = ({name: torch.tensor(each) for name, each in part.items()} for part in (values, other))
    for held, part in ((values, other), (other, values)):
        assert statistic.join(held, part)["argmax_key"].tolist() == [[2, 3, 8, 6, 4]]
