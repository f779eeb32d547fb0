"""What several GPUs would take, on paper, by figures that were worked out beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from probe.benchmark.many_gpus import Machine, Model, bytes_over_link, gpus, imbalance, seconds, table, trace_bytes

PAGE = Path(__file__).resolve().parents[2] / "docs" / "many-gpus.md"


def test_a_million_tokens_of_an_8b_model():
    model = Model()
    # 32 layers × 8 heads × 128 channels × 2 of keys and values × 2 bytes.
    assert model.cache_bytes_per_token * 1_000_000 == 131_072_000_000
    assert model.linear_flops(1_000_000) == 1.6e16
    # Half of a million squared, times two operations, 128 channels, 32 heads, 32 layers.
    assert model.product_flops(1_000_000) == 131_072 * 1e12
    assert model.working_bytes_per_token() == (3 * 14_336 + 4 * 4096) * 2 + 3 * 4096 * 8
    # Cache, work and sums of all layers by key, over what 16 GB of weights and one layer's sums leave of 72: 6.3, 64.4.
    assert (gpus(model, Machine(), 1_000_000), gpus(model, Machine(), 10_000_000)) == (8, 72)


def test_the_last_of_equal_stretches_has_this_share_of_the_pairs():
    for ranks in (1, 2, 8):
        own = 60 // ranks
        pairs = [sum(query + 1 for query in range(rank * own, (rank + 1) * own)) for rank in range(ranks)]
        # A causal row has its own key too, of which the formula leaves out the half.
        assert pairs[-1] / (sum(pairs) / ranks) == pytest.approx(imbalance(ranks), rel=0.02)
    # One rank of one operation a second: 3 products of 1 layer, 1 head, 1 channel, 10 × 10.
    assert seconds(Model(layers=1, heads=1, channels=1), 10, 1, 1.0, 3) == 300


def test_the_busiest_link_carries_what_the_ring_was_seen_to_send():
    # tests/kernels/test_ranked_scan.py counts it: three stretches of 768 bytes to the last of four ranks.
    assert bytes_over_link(Model(kv_heads=2, channels=8), 32, 4, keys=2, values=1) == 3 * 768


def test_a_trace_in_bytes():
    # 15 arrays of each of 2 heads and 2 of 1 key-value head, 3 layers, one value of 4 bytes in 64 tokens.
    assert trace_bytes(Model(layers=3, heads=2, kv_heads=1), 640) == (15 * 2 + 2) * 3 * 10 * 4


def test_sums_by_key_that_fill_a_gpu_are_said():
    # 16 GB of weights, and 4 bytes × 32 heads × a thousand million keys.
    with pytest.raises(ValueError, match="144 GB on every GPU of 72"):
        gpus(Model(), Machine(), 1_000_000_000)


def test_the_page_has_the_table():
    assert table() in PAGE.read_text(encoding="utf-8")
